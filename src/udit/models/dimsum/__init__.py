"""DiMSUM (Phung et al. 2024): Mamba scans over space and over wavelets."""
