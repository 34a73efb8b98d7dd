"""Maps with channels last, as networks hold them, and with channels first, as torch's convolutions take them.

Axes: B batch, C channels, H and W side lengths.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def to_last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C], a view."""
    return x.permute(0, 2, 3, 1)


def to_first(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W], a view (channels_last where x is contiguous)."""
    return x.permute(0, 3, 1, 2)


def merge_pixels(x: Tensor, factor: int) -> Tensor:
    """Squares of pixels as channels: [B, H, W, C] -> [B, H / f, W / f, C * f * f], contiguous where x is.

    Channel c * f * f + i * f + j holds row i, column j of each square, as ``F.pixel_unshuffle`` has it, which keeps
    channels last on the CPU alone.
    """
    if x.device.type == "cpu":
        return to_last(F.pixel_unshuffle(to_first(x), factor))
    b, height, width, channels = x.shape
    squares = x.reshape(b, height // factor, factor, width // factor, factor, channels)
    return squares.permute(0, 1, 3, 5, 2, 4).reshape(b, height // factor, width // factor, -1)


def split_pixels(x: Tensor, factor: int) -> Tensor:
    """The inverse of ``merge_pixels``: [B, H, W, C * f * f] -> [B, H * f, W * f, C]."""
    if x.device.type == "cpu":
        return to_last(F.pixel_shuffle(to_first(x), factor))
    b, height, width, channels = x.shape
    squares = x.reshape(b, height, width, channels // factor**2, factor, factor)
    return squares.permute(0, 1, 4, 2, 5, 3).reshape(b, height * factor, width * factor, -1)


def contiguous_like(x: Tensor) -> Tensor:
    """Room for a tensor of x's shape, contiguous whatever x's strides are."""
    return x.new_empty(x.shape)
