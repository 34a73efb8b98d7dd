"""Neighbourhood attention (Hassani et al. 2023, arXiv 2204.07143): every pixel attends to the k x k pixels around it.

Axes: B batch, H and W side lengths, h heads, R channels per head, n tiles, N pixels of a tile, M pixels that they see.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udit import ops

TILE = 8  # side of the squares of queries that are attended to together


def spans(length: int, kernel: int, tile: int, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """How one axis is cut into tiles of queries, and which keys each tile needs.

    A pixel's neighbours are the ``kernel`` pixels around it; near an end, the last ``kernel`` before that end.

    Args:
        length: pixels of the axis, no fewer than ``kernel``.
        kernel: neighbours, an odd number.
        tile: queries a tile. The last tile is filled up with the last pixel.
        device: of the result.

    Returns:
        queries [tiles, tile] and keys [tiles, min(tile + kernel - 1, length)], places along the axis; and bool
        [tiles, tile, keys], true for neighbours.
    """
    starts = torch.arange(0, length, tile, device=device)
    count = min(tile + kernel - 1, length)
    queries = (starts[:, None] + torch.arange(tile, device=device)).clamp(max=length - 1)
    keys = (starts - kernel // 2).clamp(0, length - count)[:, None] + torch.arange(count, device=device)
    first = (queries - kernel // 2).clamp(0, length - kernel)[..., None]
    return queries, keys, (keys[:, None] >= first) & (keys[:, None] < first + kernel)


def gather_tiles(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[B, H, W, h, R] and places [n, r], [m, c] -> [n * m, B * h, r * c, R]."""
    b, _, _, heads, channels = x.shape
    x = x[:, rows][:, :, :, columns]  # [B, n, r, m, c, h, R]
    return x.permute(1, 3, 0, 5, 2, 4, 6).reshape(-1, b * heads, rows.shape[1] * columns.shape[1], channels)


def neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int, scale: float | None = None) -> Tensor:
    """Scaled dot-product attention of every pixel to its neighbourhood.

    Tiles of 8x8 queries share the keys of their neighbourhoods, and a mask selects each query's own: memory grows with
    the number of pixels, not with its square, and products are (8 + k - 1)**2 / k**2 times those that count.

    Args:
        q, k, v: [B, H, W, h, R].
        kernel: side k of a neighbourhood, odd; H and W are no smaller. At the edges it is moved inside the map.
        scale: of the products; 1 / sqrt(R) if None.

    Returns:
        [B, H, W, h, R].
    """
    b, height, width, heads, channels = v.shape
    rows, key_rows, near_rows = spans(height, kernel, TILE, v.device)
    columns, key_columns, near_columns = spans(width, kernel, TILE, v.device)
    near = near_rows[:, None, :, None, :, None] & near_columns[None, :, None, :, None, :]  # [n, m, 8, 8, r, c]
    mask = near.flatten(4).flatten(2, 3).flatten(0, 1)[:, None]  # [n * m, 1, N, M]
    q = ops.recomputable(gather_tiles, q, rows, columns)
    k, v = (ops.recomputable(gather_tiles, part, key_rows, key_columns) for part in (k, v))
    out = ops.dot_product_attention(q, k, v, mask, scale=scale)
    out = out.view(len(rows), len(columns), b, heads, TILE, TILE, channels).permute(2, 0, 4, 1, 5, 3, 6)
    return out.flatten(3, 4).flatten(1, 2)[:, :height, :width]
