"""U-DiT (Tian et al. 2024): a U of transformer blocks with downsampled self-attention."""
