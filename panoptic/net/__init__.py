"""Layers that model.py is put together from: trunk, semantic and instance networks."""
