"""Batch norm over n images, Sec. 2.3: the layer, its arithmetic, the evaluation's statistics."""
