"""Skip-DiT (Chen et al. 2024): DiT with long skip connections."""
