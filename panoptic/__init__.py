"""Panoptic Segmentation. Kirillov, He, Girshick, Rother, Dollár, arXiv 1801.00868.

`quality.py` is the paper in one file.
"""
