"""Attention within the sub-grids of a map on NVIDIA GPUs.

As on the CPU, queries, keys and values are read where the matrix product left them, and the output and one number per
row are kept for backward. Turning, norms and scale are computed again with every block of tokens.

Axes: B batch, H and W side lengths, h heads, R channels per head, f sub-grids per axis, N tokens of a sub-grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udit.ops import nvidia

WIDEST = {torch.float32: 128, torch.bfloat16: 256, torch.float16: 256}
"""R of the widest heads; wider ones exceed a program's registers and take torch's own operators."""


def available() -> bool:
    """See ``Kernel``."""
    return nvidia.available()


loaded = available


def accepts(qkv: Tensor, scale: Tensor | None, rope: Tensor | None, heads: int, factor: int) -> bool:
    """Heads of any width up to the widest; tables have no gradient."""
    return qkv.shape[-1] // (3 * heads) <= WIDEST.get(qkv.dtype, 0)


def grid_attention(
    qkv: Tensor, scale: Tensor | None, rope: Tensor | None, heads: int, factor: int
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each row's sum of exponentials."""
    from udit.ops.attention import kernels

    qkv = qkv.contiguous()
    b, height, width, channels = qkv.shape
    tokens, grids = height * width // factor**2, b * factor**2
    out = qkv.new_empty(b, height, width, channels // 3)
    logs = qkv.new_empty(grids, heads, tokens, dtype=torch.float32)
    options = _options(qkv, tokens, channels // (3 * heads), backward=False)
    blocks = -(-tokens // options["BM"])
    sizes = height * width, width, tokens, heads, factor, blocks, _product_scale(scale, options["R"])
    nvidia.launch(
        kernels.forward, grids * heads * blocks, qkv, _floats(scale), _floats(rope), out, logs, *sizes, **options
    )
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
    """Gradients of qkv, and of the scales one sum per sub-grid."""
    from udit.ops.attention import kernels

    qkv, grad = qkv.contiguous(), nvidia.plain(grad, qkv)
    _, height, width, channels = qkv.shape
    of_qkv, of_scale = torch.empty_like(qkv), logs.new_empty(logs.shape[:2])
    options = _options(qkv, logs.shape[2], channels // (3 * heads), backward=True)
    sizes = height * width, width, logs.shape[2], heads, factor, _product_scale(scale, options["R"])
    given = grad, qkv, _floats(scale), _floats(rope), out, logs, of_qkv, of_scale
    nvidia.launch(kernels.backward, logs.shape[0] * heads, *given, *sizes, **options)
    return of_qkv, of_scale


def _product_scale(scale: Tensor | None, channels: int) -> float:
    """Of products; cosines have scales of their own."""
    return channels**-0.5 if scale is None else 1.0


def _floats(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()


def _options(qkv: Tensor, tokens: int, channels: int, backward: bool) -> dict[str, Any]:
    """How a program works. Blocks are as large as registers allow (benchmarks/kernels.py); they were not timed."""
    wide, single = nvidia.power(channels, 16), qkv.dtype == torch.float32
    most = min(4096 // wide, 64) // (2 if single else 1)
    side = min(nvidia.power(tokens, 16), most)
    many = side == most and (single or wide > (32 if backward else 128))
    return {"R": channels, "BR": wide, "BM": side, "BN": side, "PRECISION": "ieee", "warps": 8 if many else 4}
