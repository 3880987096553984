"""What shows a program: its tree, the map of each module, the answer."""
