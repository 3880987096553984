"""What is drawn: masks beside the truth, of one run or of several, and neighbours among classes."""
