"""Matching, overlaps and the tables of PQ; the peers that benchmark.py times."""
