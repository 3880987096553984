"""How programs are written: greedily, sampled, by beam search; REINFORCE, to learn from answers."""
