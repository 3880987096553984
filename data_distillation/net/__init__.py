"""The narrow network, ignore and keypoint regions in training; how a detector labels."""
