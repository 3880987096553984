"""Focal Loss for Dense Object Detection (RetinaNet).

Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár. ICCV 2017, arXiv 1708.02002.
"""
