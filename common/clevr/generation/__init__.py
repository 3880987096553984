"""New questions about scenes: templates filled in, one answer each."""
