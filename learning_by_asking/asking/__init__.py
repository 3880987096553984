"""Asking: proposals, relevance, memory, learning from what was bought."""
