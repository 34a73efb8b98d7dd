"""DiT and SiT (Peebles & Xie 2023; Ma et al. 2024)."""
