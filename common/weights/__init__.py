"""Weight files of others: read safely, tensors by name."""
