"""Inferring and Executing Programs for Visual Reasoning (arXiv 1705.03633).

Justin Johnson, Bharath Hariharan, Laurens van der Maaten, Judy Hoffman, Li Fei-Fei,
C. Lawrence Zitnick, Ross Girshick, ICCV 2017.
"""
