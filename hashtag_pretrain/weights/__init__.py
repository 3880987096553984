"""Weights of others and of runs into our networks, and trunks out of them."""
