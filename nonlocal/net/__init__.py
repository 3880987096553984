"""The video ResNets, the narrow network, and non-local blocks put into networks."""
