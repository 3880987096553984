"""Weight files of others into ours."""
