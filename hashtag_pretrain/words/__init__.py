"""Hashtags into the labels of a vocabulary: spelling, WordNet, synonyms."""
