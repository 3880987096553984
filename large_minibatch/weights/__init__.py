"""Weight files of others into our networks, and ours into a file for others."""
