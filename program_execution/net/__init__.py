"""The program generator, its LSTM in one pass, and the baselines without programs."""
