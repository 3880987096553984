"""Learning by Asking Questions: an agent that chooses which questions to buy answers to.

Misra, Girshick, Fergus, Hebert, Gupta and van der Maaten, "Learning by Asking Questions",
CVPR 2018, arXiv 1712.01238.
"""
