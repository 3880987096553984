"""Two annotators of the same images: simulated, analysed, and what the paper found of real ones."""
