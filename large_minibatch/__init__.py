"""Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour. Goyal et al., arXiv 1706.02677.

`recipe.py` is the paper in one file.
"""
