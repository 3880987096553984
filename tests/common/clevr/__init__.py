"""Tests of clevr."""
