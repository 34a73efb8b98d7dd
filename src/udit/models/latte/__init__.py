"""Latte (Ma et al. 2024): DiT on clips, whose blocks attend within frames and along time in turn."""
