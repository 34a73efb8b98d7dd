"""Maps, tokens and their positions.

Axes: B batch, C channels, H and W side lengths, D width, N tokens, R channels per head, p patch side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udit.ops import to_last
from udit.ops.transfer import sent


def rotary_table(height: int, width: int, channels: int, device: torch.device | None = None, step: int = 1) -> Tensor:
    """Angles of 2-D rotary positions (Su et al. 2021, on two axes), real-valued.

    Adjacent channels (2m, 2m + 1) are one pair; even m turn with the column, odd m with the row, at frequency
    10000 ** (-4 j / R), j = m // 2.

    Args:
        height: rows of the token grid.
        width: columns of the token grid.
        channels: R, a multiple of 4.
        device: of the result.
        step: side of the squares of pixels of which each is a token; its position is their centre.

    Returns:
        [2, N, R] float32, N = height * width row-major: the cosines, and the sines with the signs that
            ``udit.ops.attention.rotate`` expects.
    """
    frequencies = 1 / 10000 ** (torch.arange(0, channels, 4, dtype=torch.float32, device=device) / channels)
    rows, columns = (
        step * torch.arange(side, dtype=torch.float32, device=device) + (step - 1) / 2 for side in (height, width)
    )
    row, column = rows[:, None, None] * frequencies, columns[None, :, None] * frequencies
    angles = torch.stack([column.expand(height, width, -1), row.expand(height, width, -1)], dim=-1)
    angles = angles.reshape(height * width, channels // 2)
    sine = angles.sin()
    return torch.stack([angles.cos().repeat_interleave(2, dim=-1), torch.stack([-sine, sine], dim=-1).flatten(-2)])


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cuts a map into square patches, each a vector (channel, row, column) as a patch convolution's weight is.

    [B, C, H, W] -> [B, H / p, W / p, C * p * p].
    """
    return to_last(F.pixel_unshuffle(x, patch))


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """Lays out patches, each a vector (row, column, channel) as DiT's head makes it.

    [B, H, W, p * p * C] -> [B, C, H * p, W * p].
    """
    b, height, width, _ = x.shape
    x = x.view(b, height, width, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(b, -1, height * patch, width * patch)


def sincos_table(height: int, width: int, dim: int, device: torch.device | None = None) -> Tensor:
    """``sincos_positions`` of a grid whose rows and columns are counted from 0: [H, W, D] float32."""
    rows, columns = (torch.arange(count, dtype=torch.float64, device="cpu") for count in (height, width))
    return sincos_positions(rows, columns, dim, device)


def sincos_positions(rows: Tensor, columns: Tensor, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed positions of a grid: sines then cosines of the column, then of the row (Peebles & Xie 2023).

    Angles are made in float64 on the CPU, as the published tables were; only two thin tables travel to the device.

    Args:
        rows: [H] position of each row, on the CPU.
        columns: [W] position of each column, on the CPU.
        dim: D, a multiple of 4; frequencies 10000 ** (-4 i / D).
        device: of the result.

    Returns:
        [H, W, D] float32.
    """
    of_rows = sent(sincos_axis(rows, dim // 2), device)[:, None]
    of_columns = sent(sincos_axis(columns, dim // 2), device)[None]
    # not len(), which an export with free sizes takes for a constant
    return torch.cat([of_columns.expand(rows.shape[0], -1, -1), of_rows.expand(-1, columns.shape[0], -1)], dim=-1)


def sincos_axis(positions: Tensor, dim: int) -> Tensor:
    """Sines then cosines of positions [N], which are on the CPU: [N, D] float32; frequencies 10000 ** (-2 i / D)."""
    frequencies = 10000 ** (-torch.arange(dim // 2, dtype=torch.float64, device="cpu") * 2 / dim)
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()
