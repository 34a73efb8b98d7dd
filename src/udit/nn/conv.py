"""Convolutional blocks under a condition.

Axes: B batch, H and W side lengths, D width, C width of the input. Maps are [B, H, W, D]; the convolutions see them as
channels-first views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.nn.conditioning import Modulation
from udit.nn.tokens import to_first, to_last


def group_norm(width: int) -> nn.GroupNorm:
    """Affine GroupNorm (eps 1e-5) with at least four channels a group and at most 32 groups."""
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
        x = self.conv_in(F.gelu(self.norm_in(to_first(x))))
        x = F.gelu(torch.addcmul(mod.shift, to_last(self.norm_out(x)), 1 + mod.scale))
        return torch.addcmul(residual, mod.gate, to_last(self.conv_out(to_first(x))))
