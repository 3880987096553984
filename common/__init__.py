"""What the ten projects share and no paper claims: processes, checkpoints, logs, data, figures."""
