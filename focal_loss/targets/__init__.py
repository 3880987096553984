"""What an anchor has to learn: its object (assign), its box (boxes), whether it counts (mining)."""
