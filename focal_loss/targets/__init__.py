"""What the losses compare with: assignment, box offsets, hard examples."""
