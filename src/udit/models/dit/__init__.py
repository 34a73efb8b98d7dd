"""DiT and SiT (Peebles & Xie 2023; Ma et al. 2024): transformers of one width over patches."""
