"""DiCo (Ai et al. 2025): the U of U-DiT with convolutions and channel attention in place of self-attention."""
