"""What data.py is put together from: folders, decoding, augmentation, memory, built-in images."""
