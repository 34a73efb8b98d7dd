"""MPDiT (2026): blocks on coarse patches first, on fine ones last."""
