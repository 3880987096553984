"""Mask R-CNN on a pre-trained backbone, Sec. 5.4, and COCO with masks; transfer.py trains it."""
