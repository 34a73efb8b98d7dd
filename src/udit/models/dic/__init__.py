"""DiC (Tian et al. 2025): a U of 3x3 convolutions."""
