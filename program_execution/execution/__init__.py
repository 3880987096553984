"""How programs are run: one by one, all modules of a batch fused, or on scene graphs."""
