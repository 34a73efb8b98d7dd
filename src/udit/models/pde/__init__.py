"""PDE-Transformer (Holzschuh et al. 2025): U-DiT's shell with shifted windows and learned relative positions."""
