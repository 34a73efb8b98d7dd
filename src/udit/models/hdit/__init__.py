"""HDiT (Crowson et al. 2024): an hourglass of transformers."""
