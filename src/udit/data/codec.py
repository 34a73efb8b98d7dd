"""Between stored pixels and what the network sees."""

from __future__ import annotations

import torch
from torch import Tensor


class Identity:
    """Pixel space: 0..255 and -1..1."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Takes uint8 [B, C, H, W] to float32 in [-1, 1]."""
        return pixels.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Takes floats [B, C, H, W] to the nearest uint8; what lies outside [-1, 1] is clamped."""
        return ((x.to(torch.float32) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
