"""Claims of the literature on U-shaped diffusion transformers, each with what is measured here and a verdict."""
