"""Batch normalisation over groups that are not the process's batch."""
