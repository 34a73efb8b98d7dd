"""Wan 2.1 (Wan team 2025, arXiv 2503.20314), written out.

Axes: B batch, C input channels, F frames, H and W side lengths, p patch side and q its frames, f, h and w patches along
each axis, N = f h w, L tokens of the text, E their channels, D width, n heads, R channels per head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.wan.config import WanConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.clips import patchify_clips, unpatchify_clips
from udit.nn.conditioning import (
    Modulation,
    SecondTime,
    checked_vectors,
    label_rows,
    refuse_labels,
    split_times,
    timestep_features,
)
from udit.nn.hourglass import ScaledNorm
from udit.nn.rotary import axial_rotary_grid

FEATURES = 256
"""Sinusoidal features of the time."""


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    blocks: list[tuple[Modulation, Modulation]]
    context: Tensor
    """The text's tokens, [B, L, D]."""
    out: tuple[Tensor, Tensor]
    """Shift and scale of the final norm."""


class Attention(nn.Module):
    """Attention whose queries and keys are normalised over all heads together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = ScaledNorm(width), ScaledNorm(width)

    def forward(self, x: Tensor, context: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """x [B, 1, N, D] attends to ``context`` [B, L, D], or to itself with a rotary table [2, N, R]."""
        x = x[:, 0]
        source = x if context is None else context
        v = ops.apply(self.v, source)
        q, k = self.q_norm(ops.apply(self.q, x)).to(v.dtype), self.k_norm(ops.apply(self.k, source)).to(v.dtype)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        return ops.apply(self.out, ops.attend(q, k, v, None, positions).transpose(1, 2).flatten(2))[:, None]


class Block(nn.Module):
    """Modulated self-attention, cross-attention to the text without modulation or gate, and a modulated FFN."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width = config.width
        self.table = nn.Parameter(torch.empty(6, width))
        self.attention = Attention(width, config.heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.cross = Attention(width, config.heads)
        self.ffn = config.ffn.build(width)

    def condition(self, shared: Tensor) -> tuple[Modulation, Modulation]:
        """What all blocks share [B, 6, D] -> modulations of attention and FFN."""
        parts = (self.table + shared)[:, None, None].unbind(3)
        return Modulation(*parts[:3]), Modulation(*parts[3:])

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation], context: Tensor, positions: Tensor) -> Tensor:
        """x [B, 1, N, D], ``condition``'s result, the text [B, L, D], the rotary table [2, N, R] -> [B, 1, N, D]."""
        one, two = mods
        mixed = self.attention(ops.modulated_norm(x, one.shift, one.scale), None, positions)
        x = ops.gated_sum(x, one.gate, mixed)
        x = x + self.cross(ops.recomputable(ops.normalize, self.norm, x), context)
        return ops.gated_sum(x, two.gate, self.ffn(ops.modulated_norm(x, two.shift, two.scale)))


class Wan(nn.Module):
    """Backbone: x [B, C, F, H, W], t [B], y as ``condition_shape`` says or None (= null) -> [B, out, F, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"table$": init.by_width,
        r"norm\.weight$": init.constant(1.0),
        r"norm\.bias$": init.constant(0.0),
        r"^label\.": init.gaussian(1.0),
        r"": init.torch_default,
    }

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        width, volume = config.width, config.patch**2 * config.patch_frames
        self.embed = nn.Linear(config.input_channels * volume, width)
        self.time = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.label = None if config.context else nn.Embedding(config.num_classes + 1, width)
        self.context = nn.Sequential(nn.Linear(config.texts[1], width), nn.GELU("tanh"), nn.Linear(width, width))
        self.blocks = module_list(Block(config) for _ in range(config.depth))
        self.out_table = nn.Parameter(torch.empty(2, width))
        self.out = nn.Linear(width, volume * config.out_channels)
        self.second_time: SecondTime | None = None
        self.checkpointing = False

    def take_second_time(self) -> None:
        """As ``TwoTimes``."""
        self.second_time = SecondTime(FEATURES, self.config.width)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, F, H, W], t [B] in ``config.time`` units, y as the class says -> [B, out_channels, F, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide."""
        t, second = split_times(t, self.second_time)
        embedded = self.time(timestep_features(t, FEATURES).to(self.out_table.dtype))
        embedded = embedded if second is None else embedded + second
        shared = self.modulation(F.silu(embedded)).unflatten(-1, (6, -1))
        shift, scale = (self.out_table + embedded[:, None])[:, None, None].unbind(3)
        return Conditions([block.condition(shared) for block in self.blocks], self.text(t, y), (shift, scale))

    def text(self, t: Tensor, y: Tensor | None) -> Tensor:
        """The text's tokens, of a label its embedding: [B, L, D]."""
        if self.label is None:
            assert self.config.context is not None
            tokens = checked_vectors(y, len(t), self.config.context)
        else:
            if not self.config.num_classes:
                refuse_labels(y)
            tokens = label_rows(self.label, y, t, self.config.num_classes)[:, None]
        return self.context(tokens.to(self.out_table.dtype))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, None]:
        """Patches and the first blocks: [B, C, F, H, W] -> [B, f, h, w, D], and no skip."""
        self.config.check_clip(x.shape)
        x = self.embed(patchify_clips(x, self.config.patch_frames, self.config.patch))
        return self.through(x, cond, range(self.config.outer)), None

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """The blocks between, whose sum step caching keeps. [B, f, h, w, D]."""
        return self.through(x, cond, range(self.config.outer, self.config.depth - self.config.outer))

    def leave(self, x: Tensor, skip: None, cond: Conditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, f, h, w, D] -> [B, out_channels, F, H, W]."""
        x = self.through(x, cond, range(self.config.depth - self.config.outer, self.config.depth))
        out = self.out(ops.modulated_norm(x.flatten(1, 2), *cond.out)).unflatten(1, x.shape[1:3])
        return unpatchify_clips(out, self.config.patch_frames, self.config.patch)

    def through(self, x: Tensor, cond: Conditions, blocks: Sequence[int]) -> Tensor:
        """Runs blocks on [B, f, h, w, D]."""
        grid = x.shape[1:4]
        positions = axial_rotary_grid(grid, self.config.rotary, x.device)
        x = x.flatten(1, 3)[:, None]
        for i in blocks:
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i], cond.context, positions)
        return x[:, 0].unflatten(1, grid)
