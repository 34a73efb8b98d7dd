"""Training: exact, resumable to the bit, on any number of ranks."""
