"""Tower one: one architecture a file. Knows nothing of diffusion."""
