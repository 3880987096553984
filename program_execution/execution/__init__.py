"""How programs are run: one by one, fused, on scene graphs."""
