"""Weight files of the benchmark and of torchvision."""
