"""The layers that `model.py` is put together from, and training on many GPUs."""
