"""What is drawn: automatic labels, and a teacher beside its student."""
