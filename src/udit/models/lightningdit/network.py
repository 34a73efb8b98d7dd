"""LightningDiT (Yao et al. 2025, arXiv 2501.01423), written out.

Axes: B batch, C input channels, H and W side lengths, N tokens, p patch side, D width, h heads, R channels per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.lightningdit.config import LightningDiTConfig
from udit.nn import init
from udit.nn.attention import Attention, QKNormAttention
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import AdaLNConditions, Modulation, VectorConditioner
from udit.nn.hourglass import ScaledNorm
from udit.nn.rotary import split_rotary_grid
from udit.nn.tokens import patchify, sincos_table, unpatchify


def modulated(x: Tensor, norm: ScaledNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """[B, H, W, D], normalised, scaled and shifted by [B, 1, 1, D]."""
    return ops.recomputable(torch.addcmul, shift, norm(x), 1 + scale)


class Block(nn.Module):
    """Attention and FFN on a map, each behind an RMSNorm, modulated before and gated after by the condition."""

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = ScaledNorm(width)
        self.attention = (QKNormAttention if config.qk_norm else Attention)(width, config.heads)
        self.norm2 = ScaledNorm(width)
        self.ffn = config.ffn.build(width)
        self.modulation = nn.Linear(width, (6 if config.shift else 4) * width)
        self.shift = config.shift

    def condition(self, cond: Tensor) -> tuple[Modulation, Modulation]:
        """SiLU'd condition [B, D] -> modulations of attention and FFN."""
        one, two = self.modulation(cond)[:, None, None].chunk(2, dim=-1)
        return self._modulation(one), self._modulation(two)

    def _modulation(self, x: Tensor) -> Modulation:
        if self.shift:
            return Modulation(*x.chunk(3, dim=-1))
        scale, gate = x.chunk(2, dim=-1)
        return Modulation(torch.zeros_like(scale), scale, gate)

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation], positions: Tensor | None) -> Tensor:
        """x [B, H, W, D], ``condition``'s result, the rotary table [2, N, R] or None -> [B, H, W, D]."""
        one, two = mods
        x = ops.gated_sum(x, one.gate, self.attention(modulated(x, self.norm1, one.shift, one.scale), positions))
        return ops.gated_sum(x, two.gate, self.ffn(modulated(x, self.norm2, two.shift, two.scale)))


class LightningDiT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"norm[^.]*\.weight$": init.constant(1.0),
        r"^conditioner\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: LightningDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, area = config.width, config.patch**2
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = VectorConditioner(width, config.num_classes)
        self.blocks = module_list(Block(config) for _ in range(config.depth))
        self.out_norm = ScaledNorm(width)
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> AdaLNConditions:
        """Everything that (t, y) decide."""
        cond = F.silu(self.conditioner(t, y))
        blocks = [block.condition(cond) for block in self.blocks]
        return AdaLNConditions(blocks, self.out_modulation(cond)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: AdaLNConditions) -> tuple[Tensor, None]:
        """Patches and the first blocks: [B, C, H, W] -> [B, H / p, W / p, D], and no skip."""
        self.config.check_size(*x.shape[2:])
        x = self.embed(patchify(x, self.config.patch))
        _, height, width, dim = x.shape
        x = x + sincos_table(height, width, dim, x.device).to(x.dtype)
        return self.through(x, cond, range(self.config.outer)), None

    def deep(self, x: Tensor, cond: AdaLNConditions) -> Tensor:
        """The blocks between, whose sum step caching keeps. [B, H / p, W / p, D]."""
        return self.through(x, cond, range(self.config.outer, self.config.depth - self.config.outer))

    def leave(self, x: Tensor, skip: None, cond: AdaLNConditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, H / p, W / p, D] -> [B, out_channels, H, W]."""
        x = self.through(x, cond, range(self.config.depth - self.config.outer, self.config.depth))
        return unpatchify(self.out(modulated(x, self.out_norm, *cond.out)), self.config.patch)

    def through(self, x: Tensor, cond: AdaLNConditions, blocks: range) -> Tensor:
        """Runs blocks on [B, H / p, W / p, D]."""
        _, height, width, dim = x.shape
        positions = split_rotary_grid(height, width, dim // self.config.heads, x.device) if self.config.rope else None
        for i in blocks:
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i], positions)
        return x
