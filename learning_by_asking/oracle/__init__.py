"""The oracle: replies, the ledger that sells them, and who answers."""
