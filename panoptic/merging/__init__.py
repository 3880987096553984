"""Panoptic maps of several sources, from run lengths or centres, and the merge's thresholds."""
