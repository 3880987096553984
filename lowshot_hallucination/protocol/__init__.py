"""The evaluation protocol, Sec. 5: draws, novel, all, all with prior, intervals."""
