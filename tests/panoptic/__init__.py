"""Tests of panoptic."""
