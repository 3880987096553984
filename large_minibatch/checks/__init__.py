"""What doctor.py runs on a user's training loop, a file for each kind of pitfall."""
