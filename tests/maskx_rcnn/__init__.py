"""Tests of maskx_rcnn."""
