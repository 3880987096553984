"""Pictures: real and imagined features, gains, the prior."""
