"""Pictures: the curriculum, accuracy over the budget, what was asked."""
