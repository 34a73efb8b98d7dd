"""U-ViT (Bao et al. 2023): all inputs are tokens, with long skip connections."""
