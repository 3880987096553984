"""Images of a test set that are in the training set too, and what they are worth."""
