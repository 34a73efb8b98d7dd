"""Short forms of what training and compiled kernels need in a longer one, for a file that only samples (``bundle``).

Each gives what its namesake gives in evaluation, without derivatives and without a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def apply(layer: nn.Module, x: Tensor) -> Any:
    """``layer(x)``, x [..., I] -> [..., O]."""
    return layer(x)


def apply_chain(first: nn.Module, second: nn.Module, x: Tensor) -> Any:
    """``second(first(x))``, x [..., I] -> [..., O]."""
    return second(first(x))


def unchanged(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of a kind."""
    return type(layer) is kind


def normalize(layer: nn.Module, x: Tensor) -> Any:
    """``layer(x)``, x [..., D] -> [..., D]."""
    return layer(x)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last axis (Ba et al. 2016): x [..., D], weight and bias [D] or None -> [..., D]."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """torch's scaled dot-product attention; q, k and v [..., N, R]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def run(block: nn.Module, recompute: Any, x: Tensor, *args: Any) -> Any:
    """``block(x, *args)``; ``recompute`` matters in training alone."""
    return block(x, *args)


class Dropout(nn.Module):
    """The identity, as dropout is outside of training."""

    def __init__(self, rate: float, whole: bool = False) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error on an unknown word: the known ones."""
    return f" (known: {', '.join(sorted(known))})"
