"""How programs are written: greedy, sampled, by beam search; learning from answers."""
