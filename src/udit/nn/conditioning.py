"""Time and class become a conditioning vector; the vector modulates a block (adaLN-Zero, Peebles & Xie 2023).

Axes: B batch, D width, F timestep features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.errors import UserError


def timestep_features(t: Tensor, dim: int = 256) -> Tensor:
    """Sinusoidal features of time, cosines first.

    Args:
        t: [B], in the network's own unit; may be fractional.
        dim: F, even.

    Returns:
        [B, F] float32; frequencies 10000 ** (-i / (F / 2)).
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ClassConditioner(nn.Module):
    """Embeds (t, y) into one vector [B, D]: timestep MLP plus label table, whose last row is the null class."""

    def __init__(self, width: int, num_classes: int, features: int = 256, null_class: bool = True) -> None:
        """For ``num_classes`` besides the null class, which ``null_class`` leaves out; ``features`` is F."""
        super().__init__()
        self.features = features
        self.null_label = num_classes if null_class else None
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + null_class, width) if num_classes else None

    def forward(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """t [B], y [B] int64 or None (= null) -> [B, D]."""
        embedded = self.time(timestep_features(t, self.features).to(next(self.time.parameters()).dtype))
        if self.label is None:
            if y is not None:
                raise ValueError("the model is unconditional (num_classes 0) and takes no labels; pass y=None")
            return embedded
        if y is None:
            if self.null_label is None:
                raise UserError("the model has no null class, so it cannot do without labels; pass y")
            y = t.new_full((t.shape[0],), self.null_label, dtype=torch.long)
        return embedded + self.label(y)


class Modulation(NamedTuple):
    """What a condition does to one sub-layer, each [B, 1, 1, D]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine (eps 1e-6), then x * (1 + scale) + shift. x [B, H, W, D]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class AdaLNBlock(nn.Module):
    """Attention and FFN on a map, each modulated before and gated after by the condition (adaLN-Zero)."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, width: int) -> None:
        super().__init__()
        self.attention = attention
        self.ffn = ffn
        self.modulation = nn.Linear(width, 6 * width)

    def condition(self, cond: Tensor) -> tuple[Modulation, Modulation]:
        """SiLU'd condition [B, D] -> modulations of attention and FFN."""
        parts = self.modulation(cond)[:, None, None].chunk(6, dim=-1)
        return Modulation(*parts[:3]), Modulation(*parts[3:])

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation], *positions: Tensor | None) -> Tensor:
        """x [B, H, W, D], ``condition``'s result, the rotary table if the attention takes one -> [B, H, W, D]."""
        one, two = mods
        x = torch.addcmul(x, one.gate, self.attention(modulated_norm(x, one.shift, one.scale), *positions))
        return torch.addcmul(x, two.gate, self.ffn(modulated_norm(x, two.shift, two.scale)))
