"""FiT (Lu et al. 2024, arXiv 2402.12376) and FiTv2 (Wang et al. 2024, arXiv 2410.13925), written out.

Axes: B batch, C input channels, H and W side lengths, N tokens, p patch side, D width, h heads, R channels per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.fit.config import FiTConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import AdaLNConditions, Modulation, VectorConditioner, modulated, modulations
from udit.nn.rotary import base_frequencies, extrapolated, split_rotary_table
from udit.nn.sequences import check_sequence
from udit.nn.tokens import patchify
from udit.ops import to_first
from udit.ops.transfer import sent


class Layout(NamedTuple):
    """Where tokens are, and which of them see one another."""

    positions: Tensor
    """Rotary table, [2, N, R], or [2, B, 1, N, R] where each row of the batch has its own."""
    seen: Tensor | None = None
    """[B, 1, N, N] bool, true for two tokens of one image; None if all are."""
    real: Tensor | None = None
    """[B, N, 1] bool, false for padding; None if there is none."""


class Attention(nn.Module):
    """Self-attention within each image of a row; padding sees padding, and what it makes is dropped."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qk_norm = qk_norm
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor | None, real: Tensor | None) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; the others as in ``Layout``."""
        qkv = ops.apply(self.qkv, x).reshape(x.shape[0], -1, 3, self.heads, x.shape[-1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.qk_norm:
            q, k = (ops.recomputable(ops.layer_norm, each, None, None, 1e-6) for each in (q, k))
        out = ops.attend(q, k, v, rope=positions, mask=seen).transpose(1, 2).flatten(2)
        return ops.apply(self.out, (out if real is None else out * real).reshape(x.shape))


class GatedFFN(nn.Module):
    """SwiGLU (Shazeer 2020) whose three matrices are apart, as in the release."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate = ops.recomputable(F.silu, ops.apply(self.gate, x))
        return ops.apply(self.contract, ops.recomputable(torch.mul, gate, ops.apply(self.expand, x)))


class Block(nn.Module):
    """Attention and FFN, each modulated before and gated after by the condition."""

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        width, rank = config.width, config.rank
        self.attention = Attention(width, config.heads, config.qk_norm)
        self.ffn = GatedFFN(width, config.ffn.channels(width))
        self.reduce = nn.Linear(width, rank) if rank else None
        self.modulation = nn.Linear(rank or width, 6 * width)

    def condition(self, cond: Tensor, shared: Tensor | None) -> tuple[Modulation, Modulation]:
        """SiLU'd condition [B, D] and what all blocks add, [B, 6 D] -> modulations of attention and FFN."""
        x = self.modulation(cond if self.reduce is None else self.reduce(cond))
        return modulations(x if shared is None else x + shared)

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation], *layout: Tensor | None) -> Tensor:
        """x [B, H, W, D], ``condition``'s result, the parts of a ``Layout`` -> [B, H, W, D]."""
        return modulated(x, mods, self.attention, self.ffn, *layout)


class FiT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]; and ``sequence``."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioner\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: FiTConfig) -> None:
        super().__init__()
        self.config = config
        width, area = config.width, config.patch**2
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = VectorConditioner(width, config.num_classes)
        self.shared_modulation = nn.Linear(width, 6 * width) if config.rank else None
        self.blocks = module_list(Block(config) for _ in range(config.depth))
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def sequence(self, x: Tensor, t: Tensor, y: Tensor | None, grid: Tensor, mask: Tensor) -> Tensor:
        """Rows of tokens, of several images and padding (``udit.nn.sequences.pack`` makes them).

        Args:
            x: [B, N, C p p], patches as (channel, row, column).
            t: [B], one for all images of a row; y as well.
            y: [B] or None.
            grid: [B, 2, N] integers, the token's column, and its row.
            mask: [B, N] integers, the number of the token's image within the row, from 1; 0 is padding.

        Returns:
            [B, N, out_channels p p], zero at padding. (The release multiplies by the mask itself: k times too much for
            the k-th image.)

        Raises:
            UserError: shapes do not fit.
        """
        check_sequence(x, grid, mask, self.config.input_channels * self.config.patch**2)
        real = mask[..., None] != 0
        table = self.table(grid[:, 1], grid[:, 0], self.config.grid)[:, :, None]
        layout = Layout(table, (mask[:, None] == mask[..., None])[:, None], real)
        cond = self.condition(t, y)
        out = self.head(self.through(self.embed(x)[:, None], cond, range(self.config.depth), layout), cond)[:, 0]
        return out * real

    def condition(self, t: Tensor, y: Tensor | None = None) -> AdaLNConditions:
        """Everything that (t, y) decide."""
        if (shift := self.config.time_shift) != 1:
            t = shift * t / (1 + (shift - 1) * t)
        cond = F.silu(self.conditioner(t, y))
        shared = None if self.shared_modulation is None else self.shared_modulation(cond)
        blocks = [block.condition(cond, shared) for block in self.blocks]
        return AdaLNConditions(blocks, self.out_modulation(cond)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: AdaLNConditions) -> tuple[Tensor, None]:
        """Patches and the first blocks: [B, C, H, W] -> [B, H / p, W / p, D], and no skip."""
        self.config.check_size(*x.shape[2:])
        return self.through(self.embed(patchify(x, self.config.patch)), cond, range(self.config.outer)), None

    def deep(self, x: Tensor, cond: AdaLNConditions) -> Tensor:
        """The blocks between, whose sum step caching keeps. [B, H / p, W / p, D]."""
        return self.through(x, cond, range(self.config.outer, self.config.depth - self.config.outer))

    def leave(self, x: Tensor, skip: None, cond: AdaLNConditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, H / p, W / p, D] -> [B, out_channels, H, W]."""
        x = self.through(x, cond, range(self.config.depth - self.config.outer, self.config.depth))
        return F.pixel_shuffle(to_first(self.head(x, cond)), self.config.patch)

    def through(self, x: Tensor, cond: AdaLNConditions, blocks: range, layout: Layout | None = None) -> Tensor:
        """Runs blocks on [B, H / p, W / p, D], an image's patches unless a layout says what they are."""
        layout = Layout(self.image_table(x.shape[1], x.shape[2], x.device)) if layout is None else layout
        for i in blocks:
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i], *layout)
        return x

    def head(self, x: Tensor, cond: AdaLNConditions) -> Tensor:
        """[B, H / p, W / p, D] -> [B, H / p, W / p, out_channels p p], patches as (channel, row, column)."""
        return self.out(ops.modulated_norm(x, *cond.out))

    def image_table(self, height: int, width: int, device: torch.device) -> Tensor:
        """The rotary table of an image of height x width patches, [2, N, R]."""
        rows = torch.arange(height, device=device)[:, None].expand(height, width).reshape(-1)
        columns = torch.arange(width, device=device)[None].expand(height, width).reshape(-1)
        return self.table(rows, columns, (height, width))

    def table(self, rows: Tensor, columns: Tensor, sides: tuple[int, int]) -> Tensor:
        """The rotary table of tokens at [..., N] rows and columns, extrapolated for images of ``sides`` patches."""
        config, device = self.config, rows.device
        dim = config.width // config.heads // 2
        if config.extrapolation == "normal":
            frequency = base_frequencies(dim, config.theta, device)
            return split_rotary_table((frequency, frequency), rows, columns)
        (of_rows, of_columns), factor = extrapolated(
            config.extrapolation, dim, sides, config.trained_side, config.decoupled, config.theta
        )
        return split_rotary_table((sent(of_rows, device), sent(of_columns, device)), rows, columns, factor)
