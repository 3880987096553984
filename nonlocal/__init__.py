"""Non-local Neural Networks: a block whose every output position looks at all positions.

Wang, Girshick, Gupta and He, "Non-local Neural Networks", CVPR 2018, arXiv 1711.07971.
"""
