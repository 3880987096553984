"""A paper's table beside the figures measured here: rows, runs, claims, report."""
