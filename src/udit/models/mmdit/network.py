"""MMDiT (Esser et al. 2024, arXiv 2403.03206), written out.

Axes: B batch, C input channels, H and W side lengths, p patch side, D width, N patches, L tokens of the text, h heads,
R channels per head, E and P channels of the text's tokens and of the pooled text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.errors import UserError
from udit.models.mmdit.config import MMDiTConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import Modulation, label_rows, refuse_labels, timestep_features
from udit.nn.hourglass import ScaledNorm
from udit.nn.tokens import patchify, sincos_positions, unpatchify

FEATURES = 256
"""Sinusoidal features of the time."""


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    context: Tensor
    """The text's tokens as the first block takes them, [B, 1, L, D]."""
    blocks: list[tuple[list[Modulation], list[Modulation]]]
    """As ``Block.condition`` returns them."""
    out: tuple[Tensor, Tensor]
    """Shift and scale of the final norm."""


class Heads(nn.Module):
    """Queries, keys and values of tokens, head by head."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.q_norm = ScaledNorm(width // self.heads) if config.qk_norm else None
        self.k_norm = ScaledNorm(width // self.heads) if config.qk_norm else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 1, N, D] -> three of [B, h, N, R]."""
        q, k, v = (ops.apply(layer, x)[:, 0].unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """Heads side by side, [B, h, N, R] -> [B, 1, N, D]."""
    return x.transpose(1, 2).flatten(2)[:, None]


def parted(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The image's tokens and the text's ``length``, which come last: [B, 1, N + L, D] -> [B, 1, N, D], [B, 1, L, D]."""
    return x[:, :, :-length], x[:, :, -length:]


class SelfAttention(nn.Module):
    """Attention of the image's tokens among themselves."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.heads = Heads(config)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, N, D] -> [B, 1, N, D]."""
        return ops.apply(self.out, merged(ops.attend(*self.heads(x))))


class Stream(nn.Module):
    """What one of the two streams has for itself in a block; ``parts`` vectors modulate it."""

    def __init__(self, config: MMDiTConfig, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.modulation = nn.Linear(config.width, parts * config.width)
        self.heads = Heads(config)
        self.out = nn.Linear(config.width, config.width)
        self.ffn = config.ffn.build(config.width)

    def condition(self, cond: Tensor) -> list[Modulation]:
        """SiLU'd condition [B, D] -> modulations of attention, FFN and, where there is one, second attention."""
        parts = self.modulation(cond)[:, None, None].chunk(self.parts, dim=-1)
        return [Modulation(*parts[i : i + 3]) for i in range(0, self.parts, 3)]

    def feed_forward(self, x: Tensor, mod: Modulation) -> Tensor:
        """[B, 1, N, D] -> [B, 1, N, D]."""
        return ops.gated_sum(x, mod.gate, self.ffn(ops.modulated_norm(x, mod.shift, mod.scale)))


class LastText(nn.Module):
    """The text's stream in the last block: attention alone reads it, and nothing comes after."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.heads = Heads(config)

    def condition(self, cond: Tensor) -> list[Modulation]:
        """SiLU'd condition [B, D] -> the modulation of attention, whose gate is 0; the matrix has the scale first."""
        scale, shift = self.modulation(cond)[:, None, None].chunk(2, dim=-1)
        return [Modulation(shift, scale, torch.zeros_like(shift))]


class Block(nn.Module):
    """One attention for the tokens of both streams, and an FFN for each."""

    def __init__(self, config: MMDiTConfig, index: int) -> None:
        super().__init__()
        second = index in config.second_attention
        self.image = Stream(config, 9 if second else 6)
        self.text = LastText(config) if index == config.depth - 1 else Stream(config, 6)
        self.second = SelfAttention(config) if second else None

    def condition(self, cond: Tensor) -> tuple[list[Modulation], list[Modulation]]:
        """SiLU'd condition [B, D] -> modulations of the image and of the text."""
        return self.image.condition(cond), self.text.condition(cond)

    def forward(
        self, x: Tensor, text: Tensor, mods: tuple[list[Modulation], list[Modulation]]
    ) -> tuple[Tensor, Tensor]:
        """x [B, 1, N, D], the text's tokens [B, 1, L, D], ``condition``'s result -> both; the last block keeps text."""
        (one, two, *more), (before, *after) = mods
        ours = self.image.heads(ops.modulated_norm(x, one.shift, one.scale))
        theirs = self.text.heads(ops.modulated_norm(text, before.shift, before.scale))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(ours, theirs, strict=True))
        out, out_text = parted(merged(ops.attend(q, k, v)), text.shape[2])
        second = None if self.second is None else self.second(ops.modulated_norm(x, more[0].shift, more[0].scale))
        x = ops.gated_sum(x, one.gate, ops.apply(self.image.out, out))
        if second is not None:
            x = ops.gated_sum(x, more[0].gate, second)
        x = self.image.feed_forward(x, two)
        if isinstance(self.text, Stream):
            text = ops.gated_sum(text, before.gate, ops.apply(self.text.out, out_text))
            text = self.text.feed_forward(text, after[0])
        return x, text


class Texts(nn.Module):
    """Makes y a text's tokens and its pooled vector; a label's embedding is both."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.label = None if config.context else nn.Embedding(config.num_classes + 1, config.width)

    def forward(self, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """t [B], y as the network takes it -> [B, L, E] and [B, P].

        Raises:
            UserError: y is not what the model takes.
        """
        tokens, width, pooled = self.config.texts
        if self.label is None:
            wanted = [len(t), 1 + tokens, max(width, pooled)]
            if y is None or list(y.shape) != wanted:
                raise UserError(
                    f"y is {'missing' if y is None else list(y.shape)}; the model takes vectors of shape {wanted}, the "
                    "pooled text first (for no condition, those of an empty text)"
                )
            return y[:, 1:, :width], y[:, 0, :pooled]
        if not self.config.num_classes:
            refuse_labels(y)
        row = label_rows(self.label, y, t, self.config.num_classes)
        return row[:, None], row


class MMDiT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y as ``condition_shape`` says or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"norm\.weight$": init.constant(1.0),
        r"^out\.|modulation\.": init.constant(0.0),  # as DiT's; the release's training is not published
        r"^(time|pooled|texts)\..*weight$": init.gaussian(0.02),
        r"bias$": init.constant(0.0),
        r"": init.xavier,
    }

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, (_, text_width, pooled) = config.width, config.texts
        self.embed = nn.Linear(config.input_channels * config.patch**2, width)
        self.time = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Sequential(nn.Linear(pooled, width), nn.SiLU(), nn.Linear(width, width))
        self.texts = Texts(config)
        self.context = nn.Linear(text_width, width)
        self.blocks = module_list(Block(config, index) for index in range(config.depth))
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.patch**2 * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y as the class says -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, grid = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, grid, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide."""
        dtype = self.embed.weight.dtype
        tokens, pooled = self.texts(t, y)
        vector = self.time(timestep_features(t, FEATURES).to(dtype)) + self.pooled(pooled.to(dtype))
        cond = F.silu(vector)
        scale, shift = self.out_modulation(cond)[:, None, None].chunk(2, dim=-1)
        blocks = [block.condition(cond) for block in self.blocks]
        return Conditions(self.context(tokens.to(dtype))[:, None], blocks, (shift, scale))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, tuple[int, int]]:
        """Patches and text, through the first blocks: [B, 1, N + L, D]; and rows and columns of patches."""
        self.config.check_size(*x.shape[2:])
        x = self.embed(patchify(x, self.config.patch))
        grid = x.shape[1], x.shape[2]
        x = (x + self.positions(*grid, x.device).to(x.dtype)).flatten(1, 2)[:, None]
        x = torch.cat([x, cond.context.to(x.dtype)], dim=2)
        return self.through(x, cond, range(self.config.outer)), grid

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """The blocks between, whose sum step caching keeps: [B, 1, N + L, D]."""
        return self.through(x, cond, range(self.config.outer, self.config.depth - max(1, self.config.outer)))

    def leave(self, x: Tensor, grid: tuple[int, int], cond: Conditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, 1, N + L, D] -> [B, out_channels, H, W]."""
        x = self.through(x, cond, range(self.config.depth - max(1, self.config.outer), self.config.depth))
        x = x[:, 0, : grid[0] * grid[1]].unflatten(1, grid)
        return unpatchify(self.out(ops.modulated_norm(x, *cond.out)), self.config.patch)

    def through(self, x: Tensor, cond: Conditions, blocks: range) -> Tensor:
        """Runs blocks on [B, 1, N + L, D]."""
        x, text = parted(x, cond.context.shape[2])
        for i in blocks:
            x, text = run(self.blocks[i], self.checkpointing, x, text, cond.blocks[i])
        return torch.cat([x, text], dim=2)

    def positions(self, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """Fixed positions of height x width patches, taken from the centre of the table: [H / p, W / p, D]."""
        side, base = self.config.table_side, self.config.base_side
        rows, columns = centred(height, side, base), centred(width, side, base)
        return sincos_positions(rows, columns, self.config.width, device)


def centred(count: int, side: int, base: int) -> Tensor:
    """Positions of ``count`` tokens in the middle of a table of ``side``, in steps of base / side, float32."""
    start = (side - count) // 2
    return torch.arange(start, start + count, dtype=torch.float32, device="cpu") / (side / base)
