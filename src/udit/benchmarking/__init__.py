"""Time, memory and FLOPs of networks, side by side in one run."""
