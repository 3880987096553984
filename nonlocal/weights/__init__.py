"""Weight files of others, and of the image networks that are inflated, into ours."""
