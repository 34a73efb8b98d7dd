"""DiT (Peebles & Xie 2023, arXiv 2212.09748), written out. With spare outputs and unit time it is SiT.

Axes: B batch, C input channels, H and W side lengths, p patch side, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.dit.config import DiTConfig
from udit.nn import init
from udit.nn.blocks import Positioned, module_list, run
from udit.nn.conditioning import AdaLNBlock, AdaLNConditions, VectorConditioner
from udit.nn.tokens import patchify, sincos_table, unpatchify


class DiT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioner\.": init.gaussian(0.02),
        r"logit_scale$": init.constant(math.log(10)),
        r"": init.xavier,
    }

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, area = config.width, config.patch**2
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = VectorConditioner(width, config.num_classes)
        self.blocks = module_list(
            AdaLNBlock(config.attention.build(width, config.heads, index), config.ffn.build(width), width)
            for index in range(config.depth)
        )
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.head_channels)
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
        """Patches and the first blocks: [B, C, H, W] -> [B, H / p, W / p, D], and no skip: DiT has none."""
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
        x = unpatchify(self.out(ops.modulated_norm(x, *cond.out)), self.config.patch)
        return x[:, : self.config.out_channels]

    def through(self, x: Tensor, cond: AdaLNConditions, blocks: range) -> Tensor:
        """Runs blocks on [B, H / p, W / p, D]."""
        positions = cast(Positioned, self.blocks[0].attention).positions(x.shape[1], x.shape[2], x.device)
        for i in blocks:
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i], positions)
        return x
