"""Weight files of others: `initialise.py` loads them, `formats.py` knows their names."""
