"""Training a trunk on base classes, its auxiliary losses, and writing its features."""
