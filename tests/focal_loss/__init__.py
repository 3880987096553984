"""Tests of focal_loss."""
