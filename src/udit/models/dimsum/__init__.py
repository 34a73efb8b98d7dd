"""DiMSUM (Phung et al. 2024): Mamba over space and wavelets."""
