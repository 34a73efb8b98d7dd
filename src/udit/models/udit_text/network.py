"""U-DiT-text, after Playground v3 (Liu et al. 2024, arXiv 2409.10695), written out.

Axes: B batch, C input channels, H and W side lengths, p patch side, D width, h heads, R channels per head, n blocks, T
tokens of a text, E channels of the language model, N tokens of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.udit_text.config import UDiTTextConfig
from udit.nn import init
from udit.nn.blocks import NormedJoin, module_list, run
from udit.nn.conditioning import AdaLNBlock, Modulation, VectorConditioner, checked_states
from udit.nn.hourglass import ScaledNorm
from udit.nn.tokens import patchify, rotary_table, sincos_table, unpatchify
from udit.ops import to_first, to_last


def split_heads(x: Tensor, count: int, heads: int) -> Tensor:
    """[B, N, count D] -> ``count`` of [B, h, N, R]."""
    return x.unflatten(-1, (count, heads, -1)).permute(2, 0, 3, 1, 4)


class TextKeys(NamedTuple):
    """What one block's attention takes from a text."""

    keys: Tensor
    """[B, h, T, R]"""
    values: Tensor
    """[B, h, T, R]"""
    mask: Tensor
    """bool [B, 1, 1, T], false at padding."""


class JoinedAttention(nn.Module):
    """Image tokens attend to the image's keys and values and to those of a text, in one softmax.

    Queries and keys are normalised head by head. Keys of the image turn with their place in the grid; those of the text
    stay as they are: its hidden states know the order of their tokens. With a ``factor`` above 1 keys and values of the
    image are of means over factor x factor tokens, whose position is their centre; this reducer is ours.
    """

    def __init__(self, width: int, heads: int, text_width: int, factor: int) -> None:
        super().__init__()
        self.heads, self.factor = heads, factor
        channels = width // heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.text_kv = nn.Linear(text_width, 2 * width)
        self.q_norm, self.k_norm, self.text_norm = (ScaledNorm(channels) for _ in range(3))
        self.out = nn.Linear(width, width)

    def of_text(self, states: Tensor, mask: Tensor) -> TextKeys:
        """Hidden states [B, T, E] of a layer, and which tokens there are, bool [B, T]."""
        k, v = split_heads(ops.apply(self.text_kv, states.to(self.text_kv.weight.dtype)), 2, self.heads)
        return TextKeys(self.text_norm(k).to(v.dtype), v, mask[:, None, None])

    def positions(self, height: int, width: int, device: torch.device) -> Tensor:
        """Rotary tables of the queries and then of the keys, [2, N + N / factor**2, R]."""
        channels, f = self.q.in_features // self.heads, self.factor
        keys = rotary_table(height // f, width // f, channels, device, step=f)
        return torch.cat([rotary_table(height, width, channels, device), keys], dim=1)

    def forward(self, x: Tensor, text: TextKeys, positions: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; ``positions`` as the method of that name makes them."""
        coarse = to_last(F.avg_pool2d(to_first(x), self.factor)) if self.factor > 1 else x
        (q,) = split_heads(ops.apply(self.q, x).flatten(1, 2), 1, self.heads)
        k, v = split_heads(ops.apply(self.kv, coarse).flatten(1, 2), 2, self.heads)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        table, key_table = positions.split([q.shape[2], k.shape[2]], dim=1)
        q, k = (ops.recomputable(ops.rotate, part, of) for part, of in ((q, table), (k, key_table)))
        mask = F.pad(text.mask, (k.shape[2], 0), value=True)
        k, v = torch.cat([k, text.keys.to(k.dtype)], dim=2), torch.cat([v, text.values.to(v.dtype)], dim=2)
        out = ops.dot_product_attention(q, k, v, mask)
        return ops.apply(self.out, out.transpose(1, 2).reshape(x.shape))


class AttendedJoin(nn.Module):
    """A long skip's end by attention: every token adds what it reads of all tokens of the skip; the operator is ours.

    It adds nothing at first. Queries and keys are normalised head by head and turn with their place in the grid.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.skip_norm = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.q_norm, self.k_norm = (ScaledNorm(width // heads) for _ in range(2))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Two of [B, H, W, D] -> [B, H, W, D]."""
        _, height, width, dim = x.shape
        (q,) = split_heads(ops.apply(self.q, ops.normalize(self.norm, x)).flatten(1, 2), 1, self.heads)
        k, v = split_heads(ops.apply(self.kv, ops.normalize(self.skip_norm, skip)).flatten(1, 2), 2, self.heads)
        table = rotary_table(height, width, dim // self.heads, x.device)
        turned = (norm(part).to(v.dtype) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        q, k = (ops.recomputable(ops.rotate, part, table) for part in turned)
        read = ops.dot_product_attention(q, k, v)
        return x + ops.apply(self.out, read.transpose(1, 2).reshape(x.shape))


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    blocks: list[tuple[Modulation, Modulation]]
    text: list[TextKeys]
    """Of every block."""
    out: tuple[Tensor, ...]
    """Shift and scale of the final norm."""


class UDiTText(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B, n, T, E] of a text -> [B, out_channels, H, W].

    Block i reads y[:, i], whose rows of zeros are padding. Block n - 1 - i takes the output of block i over a skip.
    """

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"norm\.weight$": init.constant(1.0),
        r"^out\.|^joins\.\d+\.out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioner\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: UDiTTextConfig) -> None:
        super().__init__()
        self.config = config
        width, area = config.width, config.patch**2
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = VectorConditioner(width, 0)
        factors = [config.reduction if i in config.middle else 1 for i in range(config.depth)]
        self.blocks = module_list(
            AdaLNBlock(
                JoinedAttention(width, config.heads, config.context.width, factor), config.ffn.build(width), width
            )
            for factor in factors
        )
        attended = config.skips == "attended"
        self.joins = nn.ModuleList(
            AttendedJoin(width, config.heads) if attended else NormedJoin(width) for _ in range(config.depth // 2)
        )
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B, n, T, E] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skips = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skips, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide."""
        states, mask = checked_states(y, (t.shape[0], *self.config.condition_shape))
        cond = F.silu(self.conditioner(t))
        blocks = [block.condition(cond) for block in self.blocks]
        text = [self.attention_of(i).of_text(states[:, i], mask) for i in range(self.config.depth)]
        return Conditions(blocks, text, self.out_modulation(cond)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor]]:
        """Patches and the first blocks: [B, C, H, W] -> [B, H / p, W / p, D] and those blocks' outputs."""
        self.config.check_size(*x.shape[2:])
        x = self.embed(patchify(x, self.config.patch))
        _, height, width, dim = x.shape
        x = x + sincos_table(height, width, dim, x.device).to(x.dtype)
        return self.first_half(x, cond, range(self.config.outer))

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """The blocks between, with their own skips; step caching keeps the result. [B, H / p, W / p, D]."""
        depth, outer = self.config.depth, self.config.outer
        x, skips = self.first_half(x, cond, range(outer, depth // 2))
        for i in range(depth // 2, depth - depth // 2):  # the middle block of an odd number
            x = self.block(i, x, cond)
        return self.second_half(x, skips, cond, range(depth - depth // 2, depth - outer))

    def leave(self, x: Tensor, skips: Sequence[Tensor], cond: Conditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, H / p, W / p, D] -> [B, out_channels, H, W]."""
        x = self.second_half(x, skips, cond, range(self.config.depth - self.config.outer, self.config.depth))
        return unpatchify(self.out(ops.modulated_norm(x, *cond.out)), self.config.patch)

    def first_half(self, x: Tensor, cond: Conditions, blocks: range) -> tuple[Tensor, list[Tensor]]:
        """Runs blocks and keeps the output of each."""
        skips = []
        for i in blocks:
            x = self.block(i, x, cond)
            skips.append(x)
        return x, skips

    def second_half(self, x: Tensor, skips: Sequence[Tensor], cond: Conditions, blocks: range) -> Tensor:
        """Runs blocks, each after it has joined a skip, the last one first."""
        for i, skip in zip(blocks, reversed(skips), strict=True):
            x = self.joins[i - self.config.depth + len(self.joins)](x, skip)
            x = self.block(i, x, cond)
        return x

    def block(self, i: int, x: Tensor, cond: Conditions) -> Tensor:
        """Runs one block on [B, H / p, W / p, D]."""
        positions = self.attention_of(i).positions(x.shape[1], x.shape[2], x.device)
        out: Tensor = run(self.blocks[i], self.checkpointing, x, cond.blocks[i], cond.text[i], positions)
        return out

    def attention_of(self, i: int) -> JoinedAttention:
        """The attention of a block."""
        return cast(JoinedAttention, self.blocks[i].attention)
