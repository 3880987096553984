"""Layers that model.py is put together from."""
