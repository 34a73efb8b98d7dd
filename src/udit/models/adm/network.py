"""ADM (Dhariwal & Nichol 2021, arXiv 2105.05233), written out.

Axes: B batch, C input channels, H and W side lengths, D channels of the level at hand, E length of the condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.adm.config import ADMConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import VectorConditioner
from udit.nn.conv import ConvResample, ResBlock, ResidualAttention
from udit.ops import to_first, to_last

Mod = tuple[Tensor, ...]


class Stage(nn.Module):
    """The residual blocks of one level on one side of the U, each followed by attention where the level attends."""

    def __init__(self, blocks: Sequence[ResBlock], attentions: Sequence[ResidualAttention]) -> None:
        super().__init__()
        self.blocks = module_list(blocks)
        self.attentions = module_list(attentions)
        self.checkpointing = False

    def condition(self, cond: Tensor) -> list[Mod]:
        """SiLU'd condition [B, E] -> what it does to every block."""
        return [block.condition(cond) for block in self.blocks]

    def encode(self, x: Tensor, mods: Sequence[Mod]) -> list[Tensor]:
        """[B, H, W, C] -> the map after every block, each [B, H, W, D]; all of them are skips."""
        maps = []
        for i, mod in enumerate(mods):
            x = self.step(i, x, mod)
            maps.append(x)
        return maps

    def decode(self, x: Tensor, mods: Sequence[Mod], skips: Sequence[Tensor]) -> Tensor:
        """[B, H, W, C] and as many skips as blocks, taken last in first out -> [B, H, W, D]."""
        for i, (mod, skip) in enumerate(zip(mods, reversed(skips), strict=True)):
            x = self.step(i, torch.cat([x, skip], dim=-1), mod)
        return x

    def step(self, i: int, x: Tensor, mod: Mod) -> Tensor:
        """One block and its attention."""
        x = run(self.blocks[i], self.checkpointing, x, mod)
        return run(self.attentions[i], self.checkpointing, x) if len(self.attentions) else x


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    encoder: list[list[Mod]]
    """By level, of every block."""
    down: list[Mod]
    middle: list[Mod]
    up: list[Mod]
    decoder: list[list[Mod]]


class ADM(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 (None: the null class, if it has one) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|conv_out\.|(attentions\.\d+|middle_attention)\.out\.": init.constant(0.0),
        r"norm(_in|_out)?\.weight$": init.constant(1.0),
        r"norm(_in|_out)?\.bias$": init.constant(0.0),
        r"label\.weight$": init.gaussian(1.0),
        r"": init.torch_default,
    }

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        widths, count = config.widths, config.res_blocks
        levels, cond, legacy = len(widths), 4 * config.width, config.qkv_order == "legacy"

        def res(inner: int, width: int, resample: str | None = None) -> ResBlock:
            return ResBlock(inner, width, cond, resample, config.scale_shift_norm, config.dropout)

        def resample(width: int, direction: str) -> nn.Module:
            return res(width, width, direction) if config.resblock_updown else ConvResample(width, direction)

        def stage(level: int, inner: Sequence[int], decoder: bool) -> Stage:
            width, heads = widths[level], config.level_heads(level, decoder)
            attentions = [ResidualAttention(width, heads, legacy) for _ in inner if config.attends(level)]
            return Stage([res(channels, width) for channels in inner], attentions)

        self.conditioner = VectorConditioner(cond, config.num_classes, config.width, config.null_class)
        self.stem = nn.Conv2d(config.input_channels, widths[0], 3, padding=1)
        entries = [widths[0], *widths[:-1]]  # channels that enter a level, and so those of its first skip
        self.encoder = module_list(
            stage(level, [entries[level]] + [widths[level]] * (count - 1), False) for level in range(levels)
        )
        self.down = nn.ModuleList(resample(width, "down") for width in widths[:-1])
        self.middle = nn.ModuleList(res(widths[-1], widths[-1]) for _ in range(2))
        self.middle_attention = ResidualAttention(widths[-1], config.level_heads(levels - 1), legacy)
        self.up = nn.ModuleList(resample(width, "up") for width in widths[1:])
        self.decoder = module_list(stage(level, config.decoder_inputs(level), True) for level in range(levels))
        self.norm = nn.GroupNorm(32, widths[0])
        self.out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skips = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skips, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide: one embedding, from which every block makes its own."""
        cond = F.silu(self.conditioner(t, y))
        groups: tuple[Any, ...] = (self.encoder, self.down, self.middle, self.up, self.decoder)
        return Conditions(*([part.condition(cond) for part in group] for group in groups))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor]]:
        """Full resolution in: [B, C, H, W] -> the map [B, H, W, D] and its skips."""
        self.config.check_size(*x.shape[2:])
        x = ops.convolve_image(self.stem, x)
        maps = [x, *self.encoder[0].encode(x, cond.encoder[0])]
        return maps[-1], maps

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All below full resolution, which step caching keeps: [B, H, W, D] -> [B, H, W, D of the level below]."""
        skips: list[list[Tensor]] = []
        for level in range(1, len(self.encoder)):
            x = self.down[level - 1](x, cond.down[level - 1])
            skips.append([x, *self.encoder[level].encode(x, cond.encoder[level])])
            x = skips[-1][-1]
        x = self.middle_attention(self.middle[0](x, cond.middle[0]))
        x = self.middle[1](x, cond.middle[1])
        for level in range(len(self.encoder) - 1, 0, -1):
            x = self.decoder[level].decode(x, cond.decoder[level], skips.pop())
            x = self.up[level - 1](x, cond.up[level - 1])
        return x

    def leave(self, x: Tensor, skips: Sequence[Tensor], cond: Conditions) -> Tensor:
        """Full resolution out: [B, H, W, D] and the skips -> [B, out_channels, H, W]."""
        x = self.decoder[0].decode(x, cond.decoder[0], skips)
        return to_first(ops.convolve(self.out, to_last(F.silu(self.norm(to_first(x))))))
