"""U-ViT (Bao et al. 2023, arXiv 2209.12152), written out.

Axes: B batch, C input channels, H and W side lengths, p patch side, N patches, M tokens in front of them, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from udit import ops
from udit.models.uvit.config import UViTConfig
from udit.nn import init
from udit.nn.attention import Attention
from udit.nn.blocks import PreNormBlock, run
from udit.nn.conditioning import TokenConditioner
from udit.nn.tokens import patchify, unpatchify


class UViT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64, float [B, tokens, width] or None -> [B, out_channels, H, W].

    Block i of the second half takes the output of block depth / 2 - 1 - i of the first over a skip.
    """

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"norm\d?\.weight$": init.constant(1.0),
        r"^(embed|final)\.": init.torch_default,  # convolutions in the release, which initialises Linears only
        r"^conditioner\.label\.": init.gaussian(1.0),
        r"bias$": init.constant(0.0),
        r"": init.gaussian(0.02),  # the release cuts it off at 2, a hundred deviations away
    }

    def __init__(self, config: UViTConfig) -> None:
        super().__init__()
        self.config = config
        width, area, (rows, columns) = config.width, config.patch**2, config.grid
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = TokenConditioner(width, config.num_classes, config.null_class, config.context)
        self.positions = nn.Parameter(torch.empty(config.extras + rows * columns, width))
        self.blocks = nn.ModuleList(
            PreNormBlock(Attention(width, config.heads, qkv_bias=False), config.ffn.build(width), width)
            for _ in range(config.depth + 1)
        )
        self.joins = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(config.depth // 2))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.final = nn.Conv2d(config.out_channels, config.out_channels, 3, padding=1) if config.final_conv else None
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y as the class says -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skips = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skips, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Everything that (t, y) decide: the tokens in front, with their positions, [B, M, D]."""
        return self.conditioner(t, y).to(self.positions.dtype) + self.positions[: self.config.extras]

    def enter(self, x: Tensor, cond: Tensor) -> tuple[Tensor, list[Tensor]]:
        """All tokens and the first blocks: [B, C, H, W] -> [B, M + N, D] and those blocks' outputs."""
        self.config.check_size(*x.shape[2:])
        patches = self.embed(patchify(x, self.config.patch)).flatten(1, 2) + self.positions[self.config.extras :]
        return self.first_half(torch.cat([cond, patches], dim=1), range(self.config.outer))

    def deep(self, x: Tensor, cond: Tensor) -> Tensor:
        """The blocks between, with their own skips; step caching keeps the result. [B, M + N, D]."""
        half, outer = self.config.depth // 2, self.config.outer
        x, skips = self.first_half(x, range(outer, half))
        x = run(self.blocks[half], self.checkpointing, x)
        return self.second_half(x, skips, range(half - outer))

    def leave(self, x: Tensor, skips: Sequence[Tensor], cond: Tensor) -> Tensor:
        """The last blocks, and patches back to pixels: [B, M + N, D] -> [B, out_channels, H, W]."""
        half = self.config.depth // 2
        x = ops.normalize(self.norm, self.second_half(x, skips, range(half - self.config.outer, half)))
        x = self.out(x)[:, self.config.extras :].unflatten(1, self.config.grid)
        x = unpatchify(x, self.config.patch)
        return x if self.final is None else self.final(x)

    def first_half(self, x: Tensor, blocks: range) -> tuple[Tensor, list[Tensor]]:
        """Runs blocks of the first half and keeps the output of each."""
        skips = []
        for i in blocks:
            x = run(self.blocks[i], self.checkpointing, x)
            skips.append(x)
        return x, skips

    def second_half(self, x: Tensor, skips: Sequence[Tensor], blocks: range) -> Tensor:
        """Runs blocks of the second half, each after it has joined a skip, the last one first."""
        for i, skip in zip(blocks, reversed(skips), strict=True):
            x = ops.apply(self.joins[i], torch.cat([x, skip], dim=-1))
            x = run(self.blocks[self.config.depth // 2 + 1 + i], self.checkpointing, x)
        return x
