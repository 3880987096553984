"""Exploring the Limits of Weakly Supervised Pretraining, Mahajan et al., ECCV 2018.

arXiv 1805.00932.
"""
