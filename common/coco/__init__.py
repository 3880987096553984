"""Data sets in COCO's format: reading, checking, scoring."""
