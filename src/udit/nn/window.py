"""Windows of a map, and which pixels of a shifted window may attend to each other.

Axes: B batch, H and W side lengths, h heads, R channels per head, n windows, N pixels of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cuts a map into windows, row by row.

    Args:
        x: [B, H, W, h, R].
        window: rows and columns of a window; they divide H and W.

    Returns:
        [n, B * h, N, R]; windows come first, so that a mask [n, 1, N, N] serves every sample and head.
    """
    b, height, width, heads, channels = x.shape
    rows, columns = window
    x = x.view(b, height // rows, rows, width // columns, columns, heads, channels)
    return x.permute(1, 3, 0, 5, 2, 4, 6).reshape(-1, b * heads, rows * columns, channels)


def join_windows(x: Tensor, window: tuple[int, int], height: int, width: int, heads: int) -> Tensor:
    """Inverse of ``split_windows``: [n, B * h, N, R] -> [B, H, W, h, R]."""
    rows, columns = window
    x = x.view(height // rows, width // columns, -1, heads, rows, columns, x.shape[-1])
    return x.permute(2, 0, 4, 1, 5, 3, 6).reshape(-1, height, width, heads, x.shape[-1])


def wrap_mask(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Which pixels of a window may attend to each other after the map was rolled by ``shift`` down and right.

    Rows and columns that wrapped around the edge attend only to others that did.

    Returns:
        bool [n, 1, N, N], true where attention is allowed.
    """
    rows, columns = window
    row = (torch.arange(height, device=device) < shift[0]).view(height // rows, 1, rows, 1)
    column = (torch.arange(width, device=device) < shift[1]).view(1, width // columns, 1, columns)
    side = (2 * row + column).reshape(-1, 1, rows * columns)  # broadcasts to [rows of windows, columns, rows, columns]
    return side[..., None] == side[..., None, :]
