"""MMDiT (Esser et al. 2024): image and text are two streams of one transformer, joined in attention."""
