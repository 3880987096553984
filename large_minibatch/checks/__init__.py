"""The checks of doctor.py, by part of a training loop: step, pieces, workers, data; an example."""
