"""Maps with channels last, as networks hold them, and with channels first, as torch's convolutions take them.

Axes: B batch, C channels, H and W side lengths.
"""

from __future__ import annotations

from torch import Tensor


def to_last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H, W, C], a view."""
    return x.permute(0, 2, 3, 1)


def to_first(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W], a view (channels_last where x is contiguous)."""
    return x.permute(0, 3, 1, 2)


def contiguous_like(x: Tensor) -> Tensor:
    """Room for a tensor of x's shape, contiguous whatever x's strides are."""
    return x.new_empty(x.shape)
