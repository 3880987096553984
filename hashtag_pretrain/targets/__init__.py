"""What a trunk is transferred to: data sets, linear probe, fine-tuning, detection."""
