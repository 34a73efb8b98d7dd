"""REPA (Yu et al. 2025): SiT whose features are projected onto those of a vision model."""
