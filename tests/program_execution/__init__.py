"""Tests of program_execution."""
