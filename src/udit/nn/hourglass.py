"""Parts of the hourglass diffusion transformer (Crowson et al. 2024, arXiv 2401.11605).

Axes: B batch, C channels, H and W side lengths, D width, E length of the condition, p patch side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.nn.dropout import Dropout


class FourierFeatures(nn.Module):
    """Cosines and sines of random projections (Tancik et al. 2020), which are kept but never trained."""

    weight: Tensor

    def __init__(self, inner: int, features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(features // 2, inner))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inner] -> [B, features] in the buffer's dtype; float32 at least inside."""
        precise = torch.promote_types(self.weight.dtype, torch.float32)
        angles = (2 * math.pi * x.to(precise)) @ self.weight.to(precise).T
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.weight.dtype)


class GEGLU(nn.Module):
    """Two matrices, the first one's halves multiplied: x * GELU(gate) (Shazeer 2020). No biases; dropout between."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * hidden, bias=False)
        self.dropout = Dropout(dropout)
        self.contract = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x, gate = ops.apply(self.expand, x).chunk(2, dim=-1)
        return ops.apply(self.contract, self.dropout(ops.recomputable(torch.mul, x, ops.recomputable(F.gelu, gate))))


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """x [..., D] over its root mean square, times ``scale`` (Zhang & Sennrich 2019)."""
    return ops.recomputable(torch.mul, ops.recomputable(F.rms_norm, x, x.shape[-1:], None, 1e-6), scale)


class ScaledNorm(nn.Module):
    """``rms_norm`` with a learned scale; unlike ``nn.RMSNorm`` it takes any mix of dtypes without a warning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.weight)


class MappingBlock(nn.Module):
    """A normalised GEGLU, added to its input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = ScaledNorm(width)
        self.ffn = GEGLU(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[B, E] -> [B, E]."""
        return x + self.ffn(self.norm(x))


class Labels(NamedTuple):
    """Everything besides time that an HDiT may be conditioned on."""

    label: Tensor | None = None
    """[B] int64; None is the null class."""
    augmentation: Tensor | None = None
    """[B, 9] how the image was augmented (Karras et al. 2022); None is not at all."""
    vector: Tensor | None = None
    """[B, M] a free condition, for models with ``vector_cond`` M; None is zero."""


class HourglassBlock(nn.Module):
    """Residual block: attention and FFN on a map, each after a norm whose scale is computed from the condition."""

    def __init__(self, attention: nn.Module, width: int, hidden: int, cond: int, dropout: float) -> None:
        super().__init__()
        self.attention_scale = nn.Linear(cond, width, bias=False)
        self.attention = attention
        self.ffn_scale = nn.Linear(cond, width, bias=False)
        self.ffn = GEGLU(width, hidden, dropout)

    def condition(self, cond: Tensor) -> tuple[Tensor, Tensor]:
        """[B, E] -> scales of both norms, [B, 1, 1, D]."""
        return 1 + self.attention_scale(cond)[:, None, None], 1 + self.ffn_scale(cond)[:, None, None]

    def forward(self, x: Tensor, scales: tuple[Tensor, Tensor], positions: Tensor) -> Tensor:
        """x [B, H, W, D], ``condition``'s result, the level's rotary table -> [B, H, W, D]."""
        x = x + self.attention(rms_norm(x, scales[0]), positions)
        return x + self.ffn(rms_norm(x, scales[1]))


class PatchMerge(nn.Module):
    """Each p x p pixels become one, by a matrix."""

    def __init__(self, inner: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(inner * patch**2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H / p, W / p, D]."""
        b, height, width, channels = x.shape
        x = x.reshape(b, height // self.patch, self.patch, width // self.patch, self.patch, channels)
        return ops.apply(self.proj, x.transpose(2, 3).flatten(3))


class PatchSplit(nn.Module):
    """Each pixel becomes p x p, by a matrix."""

    def __init__(self, inner: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(inner, width * patch**2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H * p, W * p, D]."""
        p, x = self.patch, ops.apply(self.proj, x)
        squares = x.unflatten(-1, (p, p, -1)).transpose(2, 3)
        return squares.reshape(x.shape[0], x.shape[1] * p, x.shape[2] * p, -1)


class Join(nn.Module):
    """The map from below at twice the resolution, mixed with the skip in a learned proportion."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.split = PatchSplit(inner, width, 2)
        self.weight = nn.Parameter(torch.empty(1))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, H, W, C], skip [B, 2 H, 2 W, D] -> [B, 2 H, 2 W, D]; weight 0 is the skip alone."""
        return torch.lerp(skip, self.split(x), self.weight.to(skip.dtype))
