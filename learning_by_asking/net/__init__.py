"""The networks: answerers, relevance, the generator of programs."""
