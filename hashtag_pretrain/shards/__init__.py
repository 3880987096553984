"""Tagged images in tar files: writing, an index beside each, and the order of training."""
