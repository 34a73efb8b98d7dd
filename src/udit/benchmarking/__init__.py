"""Time, memory and arithmetic of networks, side by side in one run."""
