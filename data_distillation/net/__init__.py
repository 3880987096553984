"""The narrow network, ignore regions, and keypoint regions as Detectron draws them."""
