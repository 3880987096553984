"""Merges of several sources, their search, and what is measured of each part."""
