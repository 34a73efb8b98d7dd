"""REPA (Yu et al. 2025, arXiv 2410.06940), written out.

Axes: B batch, C input channels, H and W side lengths, N tokens, p patch side, D width, Z channels of a vision model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.repa.config import REPAConfig
from udit.nn import init
from udit.nn.attention import Attention
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import AdaLNBlock, AdaLNConditions, VectorConditioner
from udit.nn.projection import projector
from udit.nn.tokens import patchify, sincos_table, unpatchify


class REPA(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioner\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: REPAConfig) -> None:
        super().__init__()
        self.config = config
        width, area, projectors = config.width, config.patch**2, config.projectors
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = VectorConditioner(width, config.num_classes)
        self.blocks = module_list(
            AdaLNBlock(Attention(width, config.heads), config.ffn.build(width), width) for _ in range(config.depth)
        )
        self.projectors = module_list(projector(width, projectors.hidden, each) for each in projectors.widths)
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        return self.aligned(x, t, y)[0]

    def aligned(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """What ``forward`` returns, and each vision model's features as predicted, [B, N, Z], N row by row."""
        cond, after = self.condition(t, y), self.config.projectors.after_block
        x = self.through(self.embedded(x), cond, range(after))
        predicted = [each(x.flatten(1, 2)) for each in self.projectors]
        x = self.through(x, cond, range(after, self.config.depth))
        return self.head(x, cond), predicted

    def condition(self, t: Tensor, y: Tensor | None = None) -> AdaLNConditions:
        """Everything that (t, y) decide."""
        cond = F.silu(self.conditioner(t, y))
        blocks = [block.condition(cond) for block in self.blocks]
        return AdaLNConditions(blocks, self.out_modulation(cond)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: AdaLNConditions) -> tuple[Tensor, None]:
        """Patches and the first blocks: [B, C, H, W] -> [B, H / p, W / p, D], and no skip."""
        return self.through(self.embedded(x), cond, range(self.config.outer)), None

    def deep(self, x: Tensor, cond: AdaLNConditions) -> Tensor:
        """The blocks between, whose sum step caching keeps. [B, H / p, W / p, D]."""
        return self.through(x, cond, range(self.config.outer, self.config.depth - self.config.outer))

    def leave(self, x: Tensor, skip: None, cond: AdaLNConditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, H / p, W / p, D] -> [B, out_channels, H, W]."""
        return self.head(self.through(x, cond, range(self.config.depth - self.config.outer, self.config.depth)), cond)

    def embedded(self, x: Tensor) -> Tensor:
        """Patches with their positions: [B, C, H, W] -> [B, H / p, W / p, D]."""
        self.config.check_size(*x.shape[2:])
        x = self.embed(patchify(x, self.config.patch))
        _, height, width, dim = x.shape
        return x + sincos_table(height, width, dim, device=x.device).to(x.dtype)

    def through(self, x: Tensor, cond: AdaLNConditions, blocks: range) -> Tensor:
        """Runs blocks on [B, H / p, W / p, D]."""
        for i in blocks:
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i])
        return x

    def head(self, x: Tensor, cond: AdaLNConditions) -> Tensor:
        """Patches back to pixels: [B, H / p, W / p, D] -> [B, out_channels, H, W]."""
        return unpatchify(self.out(ops.modulated_norm(x, *cond.out)), self.config.patch)
