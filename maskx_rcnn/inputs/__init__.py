"""What data.py is put together from: the built-in paintings."""
