"""Skip-DiT (Chen et al. 2024, arXiv 2411.17616), written out.

Axes: B batch, C input channels, H and W side lengths, p patch side, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.skipdit.config import SkipDiTConfig
from udit.nn import init
from udit.nn.attention import Attention
from udit.nn.blocks import NormedJoin, module_list, run
from udit.nn.conditioning import AdaLNBlock, AdaLNConditions, VectorConditioner
from udit.nn.tokens import patchify, sincos_table, unpatchify


class SkipDiT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W].

    Block depth - 1 - i takes the output of block i over a skip: two maps, normalised together and mixed to one.
    """

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"\.norm\.weight$": init.constant(1.0),
        r"\.mix\.": init.torch_default,  # the release adds the skips after it has initialised DiT
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioner\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: SkipDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, area = config.width, config.patch**2
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = VectorConditioner(width, config.num_classes)
        self.blocks = module_list(
            AdaLNBlock(Attention(width, config.heads), config.ffn.build(width), width) for _ in range(config.depth)
        )
        self.joins = nn.ModuleList(NormedJoin(width) for _ in range(config.depth // 2))
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skips = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skips, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> AdaLNConditions:
        """Everything that (t, y) decide."""
        cond = F.silu(self.conditioner(t, y))
        blocks = [block.condition(cond) for block in self.blocks]
        return AdaLNConditions(blocks, self.out_modulation(cond)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: AdaLNConditions) -> tuple[Tensor, list[Tensor]]:
        """Patches and the first blocks: [B, C, H, W] -> [B, H / p, W / p, D] and those blocks' outputs."""
        self.config.check_size(*x.shape[2:])
        x = self.embed(patchify(x, self.config.patch))
        _, height, width, dim = x.shape
        x = x + sincos_table(height, width, dim, x.device).to(x.dtype)
        return self.first_half(x, cond, range(self.config.outer))

    def deep(self, x: Tensor, cond: AdaLNConditions) -> Tensor:
        """The blocks between, with their own skips; step caching keeps the result. [B, H / p, W / p, D]."""
        half, outer = self.config.depth // 2, self.config.outer
        x, skips = self.first_half(x, cond, range(outer, half))
        return self.second_half(x, skips, cond, range(half, self.config.depth - outer))

    def leave(self, x: Tensor, skips: Sequence[Tensor], cond: AdaLNConditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, H / p, W / p, D] -> [B, out_channels, H, W]."""
        x = self.second_half(x, skips, cond, range(self.config.depth - self.config.outer, self.config.depth))
        return unpatchify(self.out(ops.modulated_norm(x, *cond.out)), self.config.patch)

    def first_half(self, x: Tensor, cond: AdaLNConditions, blocks: range) -> tuple[Tensor, list[Tensor]]:
        """Runs blocks and keeps the output of each."""
        skips = []
        for i in blocks:
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i])
            skips.append(x)
        return x, skips

    def second_half(self, x: Tensor, skips: Sequence[Tensor], cond: AdaLNConditions, blocks: range) -> Tensor:
        """Runs blocks, each after it has joined a skip, the last one first."""
        for i, skip in zip(blocks, reversed(skips), strict=True):
            x = self.joins[i - self.config.depth // 2](x, skip)
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i])
        return x
