"""U-DiT on clips (ours): U-DiT on each frame, and attention along time after every stage."""
