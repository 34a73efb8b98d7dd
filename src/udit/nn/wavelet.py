"""Haar wavelets on maps, and the orders in which a sequence model reads a map (Phung et al. 2024, DiMSUM).

Axes: B batch, H and W side lengths, N tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

CELL = 4
"""Side of the square of pixels that two levels of the transform combine."""
HALF = 0.4999999701976776
"""The square of float32's root of one half, which the release (and so its weights) uses in place of one half."""


def haar(x: Tensor) -> Tensor:
    """One level of the Haar transform: [B, H, W, C] -> [B, H / 2, W / 2, 4 C].

    Sums, row differences, column differences and differences of differences over 2x2 pixels, each halved: an orthogonal
    map, up to the last digit of ``HALF``.
    """
    a, b, c, d = x[:, 0::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2], x[:, 1::2, 1::2]
    top, bottom, left, right = a + b, c + d, a - b, c - d
    return torch.cat([top + bottom, top - bottom, left + right, left - right], dim=-1) * HALF


def inverse_haar(x: Tensor) -> Tensor:
    """Inverse of ``haar``: [B, H, W, 4 C] -> [B, 2 H, 2 W, C]."""
    sums, rows, columns, both = x.chunk(4, dim=-1)
    top, bottom, left, right = sums + rows, sums - rows, columns + both, columns - both
    quads = torch.stack([top + left, top - left, bottom + right, bottom - right], dim=-1) * HALF
    b, height, width, channels, _ = quads.shape
    quads = quads.view(b, height, width, channels, 2, 2).permute(0, 1, 4, 2, 5, 3)
    return quads.reshape(b, 2 * height, 2 * width, channels)


def wavelets(x: Tensor) -> Tensor:
    """Two Haar levels, divided by 4, arranged on the map's own grid: [B, H, W, C] -> [B, H, W, C].

    The 16 C channels of a cell of 4x4 pixels are ordered by the first level's band, the second's, then the channel;
    number m of them goes to pixel m % 16 of the cell, row-major, as its channel m // 16. So a pixel holds some bands of
    some channels; the release's reshape does this, and its weights were trained with it.
    """
    b, height, width, channels = x.shape
    x = haar(haar(x)) / 4
    rows, columns = height // CELL, width // CELL
    x = x.unflatten(-1, (4, 4, channels)).transpose(-3, -2)  # the second level's band is the outer one
    x = x.reshape(b, rows, columns, channels, CELL, CELL).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(b, height, width, channels)


def inverse_wavelets(x: Tensor) -> Tensor:
    """Inverse of ``wavelets``: [B, H, W, C] -> [B, H, W, C]."""
    b, height, width, channels = x.shape
    x = x.view(b, height // CELL, CELL, width // CELL, CELL, channels).permute(0, 1, 3, 5, 2, 4)
    x = x.reshape(b, height // CELL, width // CELL, 4, 4, channels).transpose(-3, -2)
    return inverse_haar(inverse_haar(4 * x.flatten(-3)))


def to_windows(x: Tensor, by_column: bool) -> Tensor:
    """A map read window by window: [B, H, W, C] -> [B, N, C].

    4x4 windows, row by row and row-major inside; or column by column and column-major inside.
    """
    b, height, width, channels = x.shape
    x = x.view(b, CELL, height // CELL, CELL, width // CELL, channels)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(1, 4) if by_column else x.transpose(2, 3).flatten(1, 4)


def from_windows(x: Tensor, height: int, width: int, by_column: bool) -> Tensor:
    """Inverse of ``to_windows``: [B, N, C] -> [B, H, W, C]."""
    b, _, channels = x.shape
    h, w = height // CELL, width // CELL
    if by_column:
        x = x.view(b, CELL, CELL, w, h, channels).permute(0, 2, 4, 1, 3, 5)
    else:
        x = x.view(b, CELL, CELL, h, w, channels).transpose(2, 3)
    return x.reshape(b, height, width, channels)


def to_lines(x: Tensor, by_column: bool, backwards: bool) -> Tensor:
    """A map read line by line: [B, H, W, C] -> [B, N, C], rows or columns, from either end."""
    x = (x.transpose(1, 2) if by_column else x).flatten(1, 2)
    return x.flip(1) if backwards else x


def from_lines(x: Tensor, height: int, width: int, by_column: bool, backwards: bool) -> Tensor:
    """Inverse of ``to_lines``: [B, N, C] -> [B, H, W, C]."""
    x = x.flip(1) if backwards else x
    return x.unflatten(1, (width, height)).transpose(1, 2) if by_column else x.unflatten(1, (height, width))
