"""Layers that model.py is put together from: trunk, pyramid, heads, anchors."""
