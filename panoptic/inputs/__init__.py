"""Parts of `data.py`: photographs on disk, built-in images, augmentation, targets."""
