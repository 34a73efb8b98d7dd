"""DiCo (Ai et al. 2025, arXiv 2505.11196), written out.

Axes: B batch, C input channels, H and W side lengths, D width at full resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.dico.config import DiCoConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import AdaLNBlock, Modulation, VectorConditioner
from udit.nn.conv import Merge, Split
from udit.ops import to_first

Mods = Sequence[tuple[Modulation, Modulation]]


class ConvModule(nn.Module):
    """What stands in for self-attention: 1x1, depthwise 3x3, GELU, compact channel attention, 1x1.

    Channel attention weighs each channel by the sigmoid of a linear map of all channels' means over the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.channels = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        bias = cast(Tensor, self.depthwise.bias)
        x = ops.recomputable(F.gelu, ops.depthwise(ops.apply(self.expand, x), self.depthwise.weight, bias))
        weights = ops.recomputable(torch.sigmoid, self.channels(x.mean(dim=(1, 2), keepdim=True)))
        return ops.apply(self.contract, ops.recomputable(torch.mul, x, weights))


class Stage(nn.Module):
    """The blocks of one level on one side of the U, all [B, H, W, width]."""

    def __init__(self, config: DiCoConfig, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = module_list(AdaLNBlock(ConvModule(width), config.ffn.build(width), width) for _ in range(depth))
        self.checkpointing = False

    def condition(self, cond: Tensor) -> Mods:
        """SiLU'd condition [B, width] -> the modulations of every block."""
        return [block.condition(cond) for block in self.blocks]

    def forward(self, x: Tensor, mods: Mods) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        for block, mod in zip(self.blocks, mods, strict=True):
            x = run(block, self.checkpointing, x, mod)
        return x


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    encoder: list[Mods]
    """Modulations of encoder level 1, 2, ...; the bottleneck's last."""
    decoder: list[Mods]
    """Modulations of decoder level 1, 2, ..."""
    out: tuple[Tensor, ...]
    """Shift and scale of the final norm."""


class DiCo(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioners\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: DiCoConfig) -> None:
        super().__init__()
        self.config = config
        widths, depths, top = config.widths, config.depths, config.top
        self.stem = nn.Conv2d(config.input_channels, config.width, 3, padding=1)
        self.conditioners = nn.ModuleList(VectorConditioner(width, config.num_classes) for width in widths)
        self.encoder = module_list(Stage(config, width, depths[i]) for i, width in enumerate(widths))
        self.merge = nn.ModuleList(Merge(width) for width in widths[:-1])
        self.split = nn.ModuleList(Split(2 * width) for width in widths[:-1])
        inside = [top, *widths[1:-1]] if config.levels > 1 else []  # one level has no decoder
        self.reduce = nn.ModuleList(nn.Linear(2 * w, own) for w, own in zip(widths[:-1], inside, strict=True))
        self.decoder = module_list(Stage(config, own, depths[-1 - i]) for i, own in enumerate(inside))
        self.out_modulation = nn.Linear(top, 2 * top)
        self.out = nn.Conv2d(top, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide. Each width has its own embedding; the top decoder takes that of its width."""
        conds = [F.silu(embed(t, y)) for embed in self.conditioners]
        top = conds[min(1, len(conds) - 1)]
        encoder = [stage.condition(c) for stage, c in zip(self.encoder, conds, strict=True)]
        decoder = [stage.condition(c) for stage, c in zip(self.decoder, [top, *conds[1:-1]], strict=False)]
        return Conditions(encoder, decoder, self.out_modulation(top)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, Tensor | None]:
        """Full resolution in: [B, C, H, W] -> the map and its skip, [B, H, W, D]; one level has no skip."""
        self.config.check_size(*x.shape[2:])
        x = ops.convolve_image(self.stem, x)
        if not len(self.decoder):
            return x, None
        x = self.encoder[0](x, cond.encoder[0])
        return x, x

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All below full resolution, which step caching keeps: [B, H, W, D] -> [B, H, W, D]."""
        if not len(self.decoder):
            return self.encoder[0](x, cond.encoder[0])
        skips: list[Tensor] = []
        for level in range(1, len(self.encoder)):
            x = self.encoder[level](self.merge[level - 1](x), cond.encoder[level])
            skips.append(x)
        for level in range(len(self.decoder) - 1, 0, -1):
            x = self.decoder[level](self.join(x, skips[level - 1], level), cond.decoder[level])
        return self.split[0](x)

    def join(self, x: Tensor, skip: Tensor, level: int) -> Tensor:
        """The map from below at twice the resolution, then the encoder's, mixed to the decoder's width."""
        return ops.apply(self.reduce[level], torch.cat([self.split[level](x), skip], dim=-1))

    def leave(self, x: Tensor, skip: Tensor | None, cond: Conditions) -> Tensor:
        """Full resolution out: [B, H, W, D] and the skip -> [B, out_channels, H, W]."""
        if skip is not None:
            x = ops.apply(self.reduce[0], torch.cat([x, skip], dim=-1))
            x = self.decoder[0](x, cond.decoder[0])
        return to_first(ops.convolve(self.out, ops.modulated_norm(x, *cond.out)))
