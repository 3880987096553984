"""What data.py is put together from: the built-in images, images to label, the mixture of sets."""
