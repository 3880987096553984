"""A run's folder: what it holds, how it is locked, resumed and compared."""
