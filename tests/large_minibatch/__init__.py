"""Tests of large_minibatch."""
