"""Parts of model.py: backbone, pyramid (fpn), heads and their fast 3x3 (winograd), anchors."""
