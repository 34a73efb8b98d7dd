"""The networks: one folder for each family, the catalogue, and building. Nothing here imports diffusion."""
