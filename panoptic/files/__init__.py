"""Panoptic data on disk: COCO's format and those that are converted to and from it."""
