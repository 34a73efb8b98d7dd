"""U-DiT (Tian et al. 2024, arXiv 2405.02730), written out.

Axes: B batch, C input channels, H and W side lengths, D width at full resolution, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.udit.config import UDiTConfig
from udit.nn import init
from udit.nn.blocks import Positioned, module_list, run
from udit.nn.conditioning import AdaLNBlock, Modulation, VectorConditioner
from udit.nn.conv import Merge, Split
from udit.ops import to_first

Mods = Sequence[tuple[Modulation, Modulation]]


class Stage(nn.Module):
    """The blocks of one level on one side of the U, all [B, H, W, width]."""

    def __init__(self, config: UDiTConfig, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = module_list(
            AdaLNBlock(config.attention.build(width, config.heads, index), config.ffn.build(width), width)
            for index in range(2 * depth)
        )
        self.checkpointing = False

    def condition(self, cond: Tensor) -> Mods:
        """SiLU'd condition [B, width] -> the modulations of every block."""
        return [block.condition(cond) for block in self.blocks]

    def forward(self, x: Tensor, mods: Mods) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        attention = cast(Positioned, self.blocks[0].attention)
        positions = attention.positions(x.shape[1], x.shape[2], x.device)
        for block, mod in zip(self.blocks, mods, strict=True):
            x = run(block, self.checkpointing, x, mod, positions)
        return x


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    encoder: list[Mods]
    """Modulations of encoder level 1, 2, ...; the bottleneck's last."""
    decoder: list[Mods]
    """Modulations of decoder level 1, 2, ..."""
    out: tuple[Tensor, ...]
    """Shift and scale of the final norm."""


class UDiT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y as ``condition_shape`` says or None (= null) -> [B, out_channels, H, W].

    Labels may also be [B, K], one per level (the release's independent label dropout, see ``diffusion.objective``).
    """

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|modulation\.": init.constant(0.0),
        r"logit_scale$": init.constant(math.log(10)),
        r"bias$": init.constant(0.0),
        r"^conditioners\.": init.gaussian(0.02),
        r"^stem\.weight$": init.xavier_flat,
        r"": init.xavier,
    }

    def __init__(self, config: UDiTConfig) -> None:
        super().__init__()
        self.config = config
        levels, depths = config.levels, config.depths
        widths = [config.width * 2**level for level in range(levels)]
        top = 2 * config.width if levels > 1 else config.width  # decoder level 1 works at twice the width
        self.stem = nn.Conv2d(config.input_channels, config.width, 3, padding=1)
        self.conditioners = nn.ModuleList(
            VectorConditioner(width, config.num_classes, context=config.context) for width in widths
        )
        self.encoder = module_list(Stage(config, w, d) for w, d in zip(widths, depths[:levels], strict=True))
        self.merge = nn.ModuleList(Merge(width) for width in widths[:-1])
        self.split = nn.ModuleList(Split(2 * width) for width in widths[:-1])
        self.reduce = nn.ModuleList(
            nn.Linear(2 * width, width if level else top) for level, width in enumerate(widths[:-1])
        )
        self.decoder = module_list(
            Stage(config, width if level else top, depths[-1 - level]) for level, width in enumerate(widths[:-1])
        )
        self.mix = nn.Conv2d(top, top, 3, padding=1)
        self.out_modulation = nn.Linear(top, 2 * top)
        self.out = nn.Conv2d(top, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide. Each level has its own embedding; decoder 1, wide as level 2, takes that."""
        by_level = y is not None and y.ndim == 2 and not y.is_floating_point()  # floats are shares of labels
        labels = y.unbind(1) if y is not None and by_level else [y] * len(self.conditioners)
        conds = [F.silu(embed(t, label)) for embed, label in zip(self.conditioners, labels, strict=True)]
        top = conds[min(1, len(conds) - 1)]
        encoder = [stage.condition(c) for stage, c in zip(self.encoder, conds, strict=True)]
        up = [top, *conds[1:-1]] if len(conds) > 1 else []  # one level has no decoder
        decoder = [stage.condition(c) for stage, c in zip(self.decoder, up, strict=True)]
        return Conditions(encoder, decoder, self.out_modulation(top)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, Tensor | None]:
        """Full resolution in: [B, C, H, W] -> the map and its skip, [B, H, W, D]; one level has no skip."""
        self.config.check_size(*x.shape[2:])
        x = ops.convolve_image(self.stem, x)
        if len(self.encoder) == 1:
            return x, None
        x = self.encoder[0](x, cond.encoder[0])
        return x, x

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All below full resolution, which step caching keeps: [B, H, W, D] -> [B, H, W, D]."""
        skips: list[Tensor] = []
        for level in range(1, len(self.encoder)):
            x = self.encoder[level](self.merge[level - 1](x), cond.encoder[level])
            skips.append(x)
        if not skips:
            return self.encoder[0](x, cond.encoder[0])
        for level in range(len(self.decoder) - 1, 0, -1):
            x = self.join(self.split[level](x), skips[level - 1], level)
            x = self.decoder[level](x, cond.decoder[level])
        return self.split[0](x)

    def join(self, x: Tensor, skip: Tensor, level: int) -> Tensor:
        """The map from below, then the encoder's, mixed to the decoder's width."""
        return ops.apply(self.reduce[level], torch.cat([x, skip], dim=-1))

    def leave(self, x: Tensor, skip: Tensor | None, cond: Conditions) -> Tensor:
        """Full resolution out: [B, H, W, D] and the skip -> [B, out_channels, H, W]."""
        if skip is not None:
            x = self.decoder[0](self.join(x, skip, 0), cond.decoder[0])
        x = ops.convolve(self.mix, x)
        return to_first(ops.convolve(self.out, ops.modulated_norm(x, *cond.out)))
