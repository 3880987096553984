"""Teachers, and weight files of others into ours."""
