"""Clips from files: readers, lists of videos, which frames, crops and scales."""
