"""Modulated norms on NVIDIA GPUs in one pass over memory; two numbers per row are kept for backward."""

from __future__ import annotations

import torch
from torch import Tensor

from udit.ops import nvidia
from udit.ops.modulation import EPS
from udit.ops.rows import sizes

WIDEST = 4096
"""Channels of a row that fit into a program's registers; wider maps take torch's own operators."""


def available() -> bool:
    """See ``Kernel``."""
    return nvidia.available()


loaded = available


def accepts(x: Tensor, shift: Tensor, scale: Tensor) -> bool:
    """Single and half precision, rows up to the widest."""
    return x.dtype in nvidia.DTYPES and x.shape[-1] <= WIDEST


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and mean and inverse deviation of every row."""
    from udit.ops.modulation import kernels

    x = x.contiguous()
    b, rows, width = sizes(x)
    out, moments = torch.empty_like(x), x.new_empty(*x.shape[:-1], 2, dtype=torch.float32)
    count, wide, warps = _block(rows, width, 4096, 16)
    blocks = -(-rows // count)
    modulation = *nvidia.factors(shift, b), *nvidia.factors(scale, b)
    options = {"ROWS": count, "BD": wide, "warps": warps}
    nvidia.launch(kernels.norm, b * blocks, x, *modulation, out, moments, rows, width, blocks, EPS, **options)
    return out, moments


def modulated_norm_backward(grad: Tensor, x: Tensor, scale: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shift and scale."""
    from udit.ops.modulation import kernels

    x = x.contiguous()
    grad, of_x = nvidia.plain(grad, x), torch.empty_like(x)
    b, rows, width = sizes(x)
    count, wide, warps = _block(rows, width, 2048, 8)
    steps = -(-rows // (count * nvidia.bands(rows, b)))
    bands = -(-rows // (count * steps))
    of_shift, of_scale = nvidia.sums(scale, b, bands, width), nvidia.sums(scale, b, bands, width)
    given = grad, x, *nvidia.factors(scale, b), moments, of_x, of_shift, of_scale
    options = {"ROWS": count, "BD": wide, "warps": warps}
    nvidia.launch(kernels.norm_backward, b * bands, *given, rows, width, bands, steps, **options)
    return of_x, nvidia.summed(of_shift, scale), nvidia.summed(of_scale, scale)


def _block(rows: int, width: int, elements: int, each: int) -> tuple[int, int, int]:
    """ROWS and BD of about ``elements`` together, and warps whose threads have about ``each`` of them."""
    wide = nvidia.power(width)
    count = min(nvidia.power(rows), max(1, elements // wide))
    return count, wide, min(16, max(4, count * wide // (32 * each)))
