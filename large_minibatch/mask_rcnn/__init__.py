"""Mask R-CNN on a trained trunk, Sec. 5.4."""
