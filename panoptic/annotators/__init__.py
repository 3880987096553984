"""Two annotators of the same images: simulated, compared, drawn."""
