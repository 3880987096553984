"""Beside the training: curves of finished runs, a model of the communication, gradient noise."""
