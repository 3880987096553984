"""Features: files, class splits, episodes, and the images that they are made from."""
