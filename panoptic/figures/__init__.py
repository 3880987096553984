"""What draws."""
