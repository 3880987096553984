"""Low-Shot Learning from Imaginary Data: a hallucinator trained together with a meta-learner.

Wang, Girshick, Hebert and Hariharan, "Low-Shot Learning from Imaginary Data", CVPR 2018,
arXiv 1801.05401.
"""
