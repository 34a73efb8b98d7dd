"""Convolutional blocks.

Axes: B batch, H and W side lengths, D width, C width of the input. Maps are [B, H, W, D]; the convolutions see them as
channels-first views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.nn.conditioning import Modulation
from udit.nn.dropout import Dropout
from udit.ops import to_first, to_last


class Merge(nn.Module):
    """Halves a map: 3x3 convolution to half the channels, then each 2x2 of pixels becomes channels (D -> 2 D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width // 2, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H / 2, W / 2, 2 D]."""
        return ops.merge_pixels(ops.convolve(self.conv, x), 2)


class Split(nn.Module):
    """Doubles a map: 3x3 convolution to twice the channels, then each four channels become 2x2 pixels (D -> D / 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, 2 H, 2 W, D / 2]."""
        return ops.split_pixels(ops.convolve(self.conv, x), 2)


def group_norm(width: int) -> nn.GroupNorm:
    """Affine GroupNorm (eps 1e-5) with at least four channels per group and at most 32 groups."""
    return nn.GroupNorm(min(32, width // 4), width)


class GatedConvBlock(nn.Module):
    """Two 3x3 convolutions, modulated between and gated after by the condition (Tian et al. 2025, DiC)."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.norm_in = group_norm(inner)
        self.conv_in = nn.Conv2d(inner, width, 3, padding=1)
        self.modulation = nn.Linear(width, 3 * width)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Linear(inner, width) if inner != width else None

    def condition(self, cond: Tensor) -> Modulation:
        """SiLU'd condition [B, D] -> modulation; the release's order is gate, scale, shift."""
        gate, scale, shift = self.modulation(cond)[:, None, None].chunk(3, dim=-1)
        return Modulation(shift, scale, gate)

    def forward(self, x: Tensor, mod: Modulation) -> Tensor:
        """x [B, H, W, C], ``condition``'s result -> [B, H, W, D]."""
        residual = x if self.shortcut is None else self.shortcut(x)
        x = ops.recomputable(F.gelu, ops.recomputable(_normed, self.norm_in, x))
        x = ops.recomputable(_normed, self.norm_out, ops.convolve(self.conv_in, x))
        x = ops.recomputable(F.gelu, ops.recomputable(torch.addcmul, mod.shift, x, 1 + mod.scale))
        return torch.addcmul(residual, mod.gate, ops.convolve(self.conv_out, x))


class ResBlock(nn.Module):
    """Two 3x3 convolutions under a condition, optionally at half or twice the resolution (Dhariwal & Nichol 2021).

    Args:
        inner: C.
        width: D.
        cond: length of the condition.
        resample: "down" or "up" changes the resolution before the first convolution and on the shortcut.
        scale_shift: the condition scales and shifts the second norm's result; otherwise it is added before that norm.
        dropout: share dropped in training, before the last convolution.
    """

    def __init__(
        self, inner: int, width: int, cond: int, resample: str | None, scale_shift: bool, dropout: float
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(32, inner)
        self.conv_in = nn.Conv2d(inner, width, 3, padding=1)
        self.modulation = nn.Linear(cond, 2 * width if scale_shift else width)
        self.norm_out = nn.GroupNorm(32, width)
        self.dropout = Dropout(dropout)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Linear(inner, width) if inner != width else None
        self.resample = {"down": halved, "up": doubled, None: None}[resample]
        self.scale_shift = scale_shift

    def condition(self, cond: Tensor) -> tuple[Tensor, ...]:
        """SiLU'd condition -> (scale, shift), or (shift,); each [B, 1, 1, D]."""
        return self.modulation(cond)[:, None, None].chunk(1 + self.scale_shift, dim=-1)

    def forward(self, x: Tensor, mod: tuple[Tensor, ...]) -> Tensor:
        """x [B, H, W, C], ``condition``'s result -> [B, H', W', D]."""
        h = ops.recomputable(F.silu, ops.recomputable(_normed, self.norm_in, x))
        if self.resample is not None:
            h, x = (to_last(self.resample(to_first(part))) for part in (h, x))
        h = ops.convolve(self.conv_in, h)
        if self.scale_shift:
            scale, shift = mod
            h = ops.recomputable(torch.addcmul, shift, ops.recomputable(_normed, self.norm_out, h), 1 + scale)
        else:
            h = ops.recomputable(_normed, self.norm_out, h + mod[0])
        h = ops.convolve(self.conv_out, self.dropout(ops.recomputable(F.silu, h)))
        return (x if self.shortcut is None else self.shortcut(x)) + h


def _normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """[B, H, W, D] -> [B, H, W, D]."""
    return to_last(norm(to_first(x)))


def halved(x: Tensor) -> Tensor:
    """Means of 2x2 pixels: [B, C, H, W] -> [B, C, H / 2, W / 2]."""
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """Every pixel four times: [B, C, H, W] -> [B, C, 2 H, 2 W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class ConvResample(nn.Module):
    """Half or twice the resolution by a 3x3 convolution, without a condition."""

    def __init__(self, width: int, resample: str) -> None:
        super().__init__()
        self.up = resample == "up"
        self.conv = nn.Conv2d(width, width, 3, padding=1, stride=1 if self.up else 2)

    def condition(self, cond: Tensor) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def forward(self, x: Tensor, mod: tuple[Tensor, ...] = ()) -> Tensor:
        """[B, H, W, D] -> [B, H / 2, W / 2, D], or twice H and W."""
        return ops.convolve(self.conv, to_last(doubled(to_first(x))) if self.up else x)


class ResidualAttention(nn.Module):
    """Normalised self-attention of a map's pixels, added to the map (Dhariwal & Nichol 2021).

    Args:
        width: D.
        heads: they divide D.
        legacy: the projection's channels are heads, each with its queries, keys and values; otherwise all queries come
            first, then keys, then values.
    """

    def __init__(self, width: int, heads: int, legacy: bool) -> None:
        super().__init__()
        self.heads = heads
        self.legacy = legacy
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        qkv = self.qkv(to_last(self.norm(to_first(x)))).flatten(1, 2)
        if self.legacy:
            q, k, v = qkv.unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        else:
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = ops.dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.out(out)
