"""The built-in tagged scenes, decoding and augmentation."""
