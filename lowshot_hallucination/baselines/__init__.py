"""What the field compares with: the linear classifier of the benchmark, the analogies."""
