"""Mask^X R-CNN: masks for classes that have only boxes.

Hu, Dollár, He, Darrell and Girshick, "Learning to Segment Every Thing", CVPR 2018,
arXiv 1711.10370.
"""
