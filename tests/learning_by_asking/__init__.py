"""Tests of learning_by_asking."""
