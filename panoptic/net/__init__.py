"""Layers of `model.py`: bodies, Mask R-CNN and its regions, PSPNet, Panoptic FPN, padding."""
