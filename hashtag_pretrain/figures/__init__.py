"""What is drawn: samplings, predictions."""
