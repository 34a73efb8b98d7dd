"""DiC (Tian et al. 2025, arXiv 2501.00603), written out.

Axes: B batch, C input channels, H and W side lengths, D width at full resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.dic.config import DiCConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import Modulation, VectorConditioner
from udit.nn.conv import GatedConvBlock, Merge, Split
from udit.ops import to_first


class Stage(nn.Module):
    """The blocks of one level on one side of the U; sparse skips leave an encoder stage and enter a decoder stage."""

    def __init__(self, width: int, depth: int, stride: int, decoder: bool) -> None:
        super().__init__()
        self.blocks = module_list(
            GatedConvBlock(2 * width if decoder and i % stride == 0 else width, width) for i in range(depth)
        )
        self.stride = stride
        self.checkpointing = False

    def condition(self, cond: Tensor) -> list[Modulation]:
        """SiLU'd condition [B, width] -> the modulation of every block."""
        return [block.condition(cond) for block in self.blocks]

    def encode(self, x: Tensor, mods: Sequence[Modulation]) -> tuple[Tensor, list[Tensor]]:
        """[B, H, W, width] -> the map and the skips: the last block's output, and every ``stride``-th before it."""
        skips = []
        for left, (block, mod) in enumerate(zip(self.blocks, mods, strict=True), start=1 - len(self.blocks)):
            x = run(block, self.checkpointing, x, mod)
            if left % self.stride == 0:
                skips.append(x)
        return x, skips

    def decode(self, x: Tensor, mods: Sequence[Modulation], skips: Sequence[Tensor]) -> Tensor:
        """[B, H, W, width] and ``encode``'s skips, taken last in first out -> [B, H, W, width]."""
        waiting = list(skips)
        for i, (block, mod) in enumerate(zip(self.blocks, mods, strict=True)):
            x = x if i % self.stride else torch.cat([x, waiting.pop()], dim=-1)
            x = run(block, self.checkpointing, x, mod)
        return x


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    encoder: list[list[Modulation]]
    """Modulations of encoder level 1, 2, ...; the bottleneck's last."""
    decoder: list[list[Modulation]]
    """Modulations of decoder level 1, 2, ..."""
    out: tuple[Tensor, ...]
    """Shift and scale of the final norm."""


class DiC(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out": init.constant(0.0),
        r"norm_(in|out)\.weight$": init.constant(1.0),
        r"bias$": init.constant(0.0),
        r"^conditioners\.": init.gaussian(0.02),
        r"": init.xavier,  # the block modulations too: unlike adaLN-Zero, the release's gates start open
    }

    def __init__(self, config: DiCConfig) -> None:
        super().__init__()
        self.config = config
        widths, depths, stride = config.widths, config.depths, config.skip_stride
        self.stem = nn.Conv2d(config.input_channels, config.width, 3, padding=1)
        self.conditioners = nn.ModuleList(VectorConditioner(width, config.num_classes) for width in widths)
        self.encoder = module_list(Stage(width, depths[i], stride, False) for i, width in enumerate(widths))
        self.merge = nn.ModuleList(Merge(width) for width in widths[:-1])
        self.split = nn.ModuleList(Split(2 * width) for width in widths[:-1])
        self.decoder = module_list(Stage(width, depths[-1 - i], stride, True) for i, width in enumerate(widths[:-1]))
        self.mix = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.out_modulation = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Conv2d(config.width, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skips = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skips, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide. Each level has its own embedding, which both its stages take."""
        conds = [F.silu(embed(t, y)) for embed in self.conditioners]
        encoder = [stage.condition(c) for stage, c in zip(self.encoder, conds, strict=True)]
        decoder = [stage.condition(c) for stage, c in zip(self.decoder, conds[:-1], strict=True)]
        return Conditions(encoder, decoder, self.out_modulation(conds[0])[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor] | None]:
        """Full resolution in: [B, C, H, W] -> the map [B, H, W, D] and its skips, which a single level has none of."""
        self.config.check_size(*x.shape[2:])
        x = ops.convolve_image(self.stem, x)
        return self.encoder[0].encode(x, cond.encoder[0]) if len(self.decoder) else (x, None)

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All below full resolution, which step caching keeps: [B, H, W, D] -> [B, H, W, D]."""
        skips: list[list[Tensor]] = [[]]
        for level in range(1, len(self.encoder)):
            x, left = self.encoder[level].encode(self.merge[level - 1](x), cond.encoder[level])
            skips.append(left)
        if not len(self.decoder):
            return self.encoder[0].encode(x, cond.encoder[0])[0]
        for level in range(len(self.decoder) - 1, 0, -1):
            x = self.decoder[level].decode(self.split[level](x), cond.decoder[level], skips[level])
        return self.split[0](x)

    def leave(self, x: Tensor, skips: Sequence[Tensor] | None, cond: Conditions) -> Tensor:
        """Full resolution out: [B, H, W, D] and the skips -> [B, out_channels, H, W]."""
        if skips is not None:
            x = self.decoder[0].decode(x, cond.decoder[0], skips)
        x = ops.convolve(self.mix, x)
        return to_first(ops.convolve(self.out, ops.modulated_norm(x, *cond.out)))
