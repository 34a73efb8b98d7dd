"""LightningDiT (Yao et al. 2025): DiT with rotary positions, RMSNorm and SwiGLU."""
