"""What finished runs and the all-reduce tell: curves, communication, gradient noise."""
