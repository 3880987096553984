"""What data.py is put together from: images on disk, built-in ones, augmentation, targets."""
