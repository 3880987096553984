"""Tests of lowshot_hallucination."""
