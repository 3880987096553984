"""What the paper prints of its consistency study, percent; recalled, not compared with its text."""

THREE = ("Cityscapes", "ADE20k", "Vistas")

# PQ PQ^St PQ^Th, then the same of SQ and RQ
TABLE_1 = {
    "Cityscapes": (69.7, 71.3, 67.4, 84.2, 84.4, 83.9, 82.1, 83.4, 80.2),
    "ADE20k": (67.1, 70.3, 65.9, 85.8, 85.5, 85.9, 78.0, 82.4, 76.4),
    "Vistas": (57.5, 62.6, 53.4, 79.5, 81.6, 77.9, 71.4, 76.0, 67.7),
}
# PQ of small, medium, large, then the same of SQ and RQ
TABLE_2 = {
    "Cityscapes": (35.1, 62.3, 84.8, 67.8, 81.0, 89.9, 51.5, 76.5, 94.1),
    "ADE20k": (49.9, 69.4, 79.0, 78.0, 84.0, 87.8, 64.2, 82.5, 89.8),
    "Vistas": (35.6, 47.7, 69.4, 70.1, 76.6, 83.1, 51.5, 62.3, 82.6),
}
# PQ SQ RQ PQ^St PQ^Th, each with the way up to the 95th and down to the 5th percentile
TABLE_6_HUMAN = {
    "Cityscapes": ((69.6, 2.5, 2.7), (84.1, 0.8, 0.8), (82.0, 2.7, 2.9), (71.2, 2.3, 2.5),
                   (67.4, 4.6, 4.9)),
    "ADE20k": ((67.6, 2.0, 2.0), (85.7, 0.6, 0.6), (78.6, 2.1, 2.1), (71.0, 3.7, 3.2),
               (66.4, 2.3, 2.4)),
    "Vistas": ((57.7, 1.9, 2.0), (79.7, 0.8, 0.7), (71.6, 2.2, 2.3), (62.7, 2.8, 2.8),
               (53.6, 2.7, 2.8)),
}  # fmt: skip
TABLE_6_MACHINE = {
    "Cityscapes": (61.2, 80.9, 74.4, 66.4, 54.0),
    "ADE20k": (35.6, 74.4, 43.2, 24.5, 41.1),
    "Vistas": (38.3, 73.6, 47.7, 41.8, 35.7),
}
BELOW_HALF = 16.0  # percent of optimally matched pairs that have an IoU below 0.5, at most
