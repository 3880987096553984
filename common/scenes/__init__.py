"""The built-in world of all ten projects: solids on a floor, rendered by ray casting."""
