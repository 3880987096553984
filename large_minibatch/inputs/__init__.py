"""What data.py is put together from: folders, decoding, augmentation, images in memory."""
