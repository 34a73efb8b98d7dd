"""Self-attention with rotary positions along two axes (Crowson et al. 2024, arXiv 2401.11605).

Of the whole map, within windows, or within neighbourhoods.

Axes: B batch, H and W side lengths, D width, h heads, R channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from udit import ops
from udit.errors import UserError
from udit.nn.dropout import Dropout
from udit.nn.window import join_windows, split_windows, wrap_mask


def axial_positions(height: int, width: int, halvings: int = 0, device: torch.device | None = None) -> Tensor:
    """Pixel centres in a box that fits into [-1, 1] x [-1, 1] and keeps the map's proportions.

    Args:
        height: H.
        width: W.
        halvings: how often a finer map was halved to this one; its positions are means over 2x2 of the finer map's.
        device: of the result.

    Returns:
        [H, W, 2] float32, (row, column).
    """
    if halvings:
        fine = axial_positions(2 * height, 2 * width, halvings - 1, device)
        return fine.view(height, 2, width, 2, 2).mean(dim=(1, 3))
    rows = centres(min(1.0, height / width), height, device)
    columns = centres(min(1.0, width / height), width, device)
    return torch.stack([rows[:, None].expand(-1, width), columns[None].expand(height, -1)], dim=-1)


def centres(end: float, count: int, device: torch.device | None) -> Tensor:
    """Centres of ``count`` equal parts of [-end, end]."""
    edges = torch.linspace(-end, end, count + 1, device=device)
    return (edges[:-1] + edges[1:]) / 2


def axial_frequencies(heads: int, channels: int, device: torch.device | None = None) -> Tensor:
    """[h, R / 8] float32: from pi to 10 pi in equal ratios, dealt out to the heads in turn."""
    steps = torch.linspace(math.log(math.pi), math.log(10 * math.pi), heads * channels // 8 + 1, device=device)
    return steps[:-1].exp().view(channels // 8, heads).T.contiguous()


def axial_table(positions: Tensor, heads: int, channels: int) -> Tensor:
    """Cosines and sines of the angle of every pixel, head and pair of channels.

    Args:
        positions: [H, W, 2] of ``axial_positions``, in the precision wanted.
        heads: h.
        channels: R.

    Returns:
        [2, H, W, h, R / 4], angles by row first, then by column.
    """
    frequencies = axial_frequencies(heads, channels, positions.device)[:, None].to(positions.dtype)
    angles = (positions[:, :, None, :, None] * frequencies).flatten(-2)
    return torch.stack([angles.cos(), angles.sin()])


def turn(x: Tensor, table: Tensor) -> Tensor:
    """Turns the first half of each head's channels; channel i pairs with channel i + R / 4, the second half stays.

    Args:
        x: [B, H, W, h, R].
        table: [2, H, W, h, R / 4] of ``axial_table``.
    """
    cos, sin = table.to(x.dtype)
    a, b, rest = x.split([cos.shape[-1], cos.shape[-1], x.shape[-1] // 2], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention by products (scale 1) among queries, keys and values, all [B, H, W, h, R], to the same shape."""


def attend_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every pixel to every pixel."""
    height, width = v.shape[1:3]
    q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
    return ops.dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).unflatten(1, (height, width))


def attend_windows(q: Tensor, k: Tensor, v: Tensor, size: int, shift: int) -> Tensor:
    """Within windows of ``size x size``, shifted up and left by ``shift``; those at the edge are cut off there."""
    _, height, width, heads, _ = v.shape
    window, mask = (size, size), None
    if shift:
        q, k, v = (part.roll((shift, shift), dims=(1, 2)) for part in (q, k, v))
        mask = wrap_mask(height, width, window, (shift, shift), v.device)
    q, k, v = (split_windows(part, window) for part in (q, k, v))
    out = ops.dot_product_attention(q, k, v, mask, scale=1.0)
    out = join_windows(out, window, height, width, heads)
    return out.roll((-shift, -shift), dims=(1, 2)) if shift else out


class AxialAttention(nn.Module):
    """Cosine attention with a learned scale per head and axial rotary positions.

    Args:
        width: D.
        heads: h.
        attend: computes attention; decides which pixels attend to which.
        dropout: share of what was attended that is dropped in training.
    """

    def __init__(self, width: int, heads: int, attend: Attend = attend_all, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads or width // heads % 8:
            raise UserError(f"width {width} over {heads} heads: axial positions need a multiple of 8 channels per head")
        self.heads, self.attend = heads, attend
        self.scale = nn.Parameter(torch.empty(heads))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(width, width, bias=False)

    def positions(
        self, height: int, width: int, device: torch.device, halvings: int = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The rotary table of a map, [2, H, W, h, R / 4], float32 at least; ``halvings`` as in ``axial_positions``."""
        positions = axial_positions(height, width, halvings, device).to(torch.promote_types(dtype, torch.float32))
        return axial_table(positions, self.heads, self.qkv.in_features // self.heads)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; ``positions`` as the method of that name makes them."""
        q, k, v = ops.apply(self.qkv, x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        precise = torch.promote_types(q.dtype, torch.float32)
        root = self.scale.to(precise).sqrt()[:, None]
        q, k = (ops.recomputable(torch.mul, ops.recomputable(unit, part.to(precise)), root) for part in (q, k))
        q, k = (ops.recomputable(turn, part, positions).to(v.dtype) for part in (q, k))
        return ops.apply(self.out, self.dropout(self.attend(q, k, v).flatten(-2)))


def unit(x: Tensor) -> Tensor:
    """x over its length, the square of which is at least 1e-6."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)
