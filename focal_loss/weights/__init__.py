"""Weight files of others into our model (initialise, formats), and ours into theirs (export)."""
