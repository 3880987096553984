"""CLEVR's questions, features and maps as arrays."""
