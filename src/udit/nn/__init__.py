"""Tower one: the parts networks are made of. Knows nothing of diffusion."""
