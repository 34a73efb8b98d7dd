"""Attention within the sub-grids of a map on the CPU.

It takes queries, keys and values as the matrix product returns them, and keeps for backward only these, the output and
one number per row: torch's operators need a dozen passes over memory for layout, rotation, norms and scale, and their
attention is slow where heads are narrow. Memory is linear in tokens. Sums run in an order that depends on shapes alone,
so bits do not depend on the number of threads.

Axes: B batch, H and W side lengths, h heads, R channels per head, f sub-grids per axis, N tokens of a sub-grid.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from udit.ops.build import FLOATS, INT, MAP, MAYBE_FLOATS, CFunction, Library

LIBRARY = Library("grid_attention", Path(__file__).with_name("cpu.cpp"))
available, loaded = LIBRARY.available, LIBRARY.loaded
ATTENTION = CFunction(LIBRARY, "attention", MAP, MAYBE_FLOATS, MAYBE_FLOATS, MAP, FLOATS, *[INT] * 6)
ATTENTION_BACKWARD = CFunction(
    LIBRARY, "attention_backward", MAP, MAP, MAYBE_FLOATS, MAYBE_FLOATS, MAP, FLOATS, MAP, FLOATS, *[INT] * 6
)
DTYPES = (torch.float32, torch.bfloat16)
"""Element types that are compiled; all arithmetic is float32 for both."""


def accepts(qkv: Tensor, scale: Tensor | None, rope: Tensor | None, heads: int, factor: int) -> bool:
    """Float32 and bfloat16; tables have no gradient."""
    return qkv.dtype in DTYPES


def grid_attention(
    qkv: Tensor, scale: Tensor | None, rope: Tensor | None, heads: int, factor: int
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each row's sum of exponentials."""
    qkv = qkv.contiguous()
    b, height, width, channels = qkv.shape
    out = qkv.new_empty(b, height, width, channels // 3)
    logs = qkv.new_empty(b * factor**2, heads, height * width // factor**2, dtype=torch.float32)
    ATTENTION(qkv.dtype, qkv, _plain(scale), _plain(rope), out, logs, *_sizes(qkv, heads, factor))
    return out, logs


def grid_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    scale: Tensor | None,
    rope: Tensor | None,
    out: Tensor,
    logs: Tensor,
    heads: int,
    factor: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of qkv, and of the scales one sum for each sub-grid."""
    qkv = qkv.contiguous()
    of_qkv, of_scale = torch.empty_like(qkv), torch.empty(logs.shape[:2])
    given = (grad.to(qkv.dtype).contiguous(), qkv, _plain(scale), _plain(rope), out, logs)
    ATTENTION_BACKWARD(qkv.dtype, *given, of_qkv, of_scale, *_sizes(qkv, heads, factor))
    return of_qkv, of_scale


def _sizes(qkv: Tensor, heads: int, factor: int) -> tuple[int, ...]:
    """B, H, W, h, R, f."""
    b, height, width, channels = qkv.shape
    return b, height, width, heads, channels // (3 * heads), factor


def _plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
