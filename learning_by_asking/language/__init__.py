"""Sentences for any program, and the parser that inverts them."""
