"""Weight files of others: `pickles.read` runs nothing of them, `formats` finds the tensors."""
