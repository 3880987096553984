"""Data distillation: labels of one model under many transforms, for a student.

Radosavovic, Dollár, Girshick, Gkioxari and He, "Data Distillation: Towards Omni-Supervised
Learning", CVPR 2018, arXiv 1712.04440.
"""
