"""Panoptic maps of several sources, from run lengths, and the merge's thresholds."""
