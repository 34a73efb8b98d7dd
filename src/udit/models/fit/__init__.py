"""FiT (Lu et al. 2024) and FiTv2 (Wang et al. 2024): images of any size as sequences of tokens."""
