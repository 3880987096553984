"""Tests of nonlocal."""
