"""Running blocks, with their activations kept for backward or computed again, and joining two of their outputs.

Axes: B batch, H and W side lengths, N tokens, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from udit import ops
from udit.nn.dropout import recomputed_with_keys

Recompute = bool | Literal["selective"]
"""Which activations of a block are computed again in backward: none, those that cost little, or all."""


def run(block: nn.Module, recompute: Recompute, x: Tensor, *args: Any) -> Tensor:
    """``block(x, *args)``; while it trains, its activations are kept for backward or computed again."""
    if not recompute or not block.training:
        return block(x, *args)
    if recompute == "selective":
        with ops.recomputing():
            return block(x, *args)
    return checkpoint(block, x, *args, use_reentrant=False, context_fn=recomputed_with_keys)


class PreNormBlock(nn.Module):
    """Attention and FFN on tokens, each behind a LayerNorm of its own (eps 1e-5); no modulation, as in ViT."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = attention
        self.norm2 = nn.LayerNorm(width)
        self.ffn = ffn

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.attention(ops.recomputable(self.norm1, x))
        return x + self.ffn(ops.recomputable(self.norm2, x))


class NormedJoin(nn.Module):
    """A long skip's end: both maps side by side, normalised, mixed back to one width (Chen et al. 2024, Skip-DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width, eps=1e-6)
        self.mix = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Two of [B, H, W, D] -> [B, H, W, D]."""
        both = torch.cat([x, skip], dim=-1)
        norm = self.norm  # in float32 whatever the model's dtype, as the release has it
        normed = F.layer_norm(both.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return ops.apply(self.mix, normed.to(both.dtype))
