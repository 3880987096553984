"""Weights to start from: the public code's checkpoints, and those of other runs."""
