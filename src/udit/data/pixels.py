"""What a network generates as pixels: the end of every codec, which exported pipelines have too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Affine = float | tuple[float, ...]
"""One number, or one for each channel."""


def to_pixels(x: Tensor) -> Tensor:
    """Floats [B, C, H, W] in [-1, 1] -> the nearest uint8; values outside are clamped."""
    return ((x.to(torch.float32) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def to_latents(x: Tensor, shift: Affine, scale: Affine, patch: int) -> Tensor:
    """Normalised latents [B, c, h, w] -> those that a VAE decodes.

    Args:
        x: (z - shift) * scale.
        shift: see there.
        scale: see there.
        patch: side of the squares of latents that are channels of x.

    Returns:
        float32 [B, c / patch**2, h * patch, w * patch].
    """
    return F.pixel_shuffle(x.to(torch.float32) / _channels(scale, x) + _channels(shift, x), patch)


def _channels(values: Affine, like: Tensor) -> Tensor:
    """[1, c, 1, 1] or [1, 1, 1, 1]."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)
