"""What is drawn or printed: maps and their errors, predictions, the study, the search; scores."""
