"""Networks beside the engine: program generator, recurrence, baselines."""
