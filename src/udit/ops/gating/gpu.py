"""Gated sums on NVIDIA GPUs in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from udit.ops import nvidia
from udit.ops.rows import sizes

ROWS = 32
"""Rows of a program at a time."""


def available() -> bool:
    """See ``Kernel``."""
    return nvidia.available()


loaded = available


def accepts(x: Tensor, gate: Tensor, y: Tensor) -> bool:
    """Maps of single and half precision; y may have another precision than x."""
    return x.dtype in nvidia.DTYPES and y.dtype in nvidia.DTYPES


def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """As the operator, in x's type."""
    from udit.ops.gating import kernels

    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    b, rows, width = sizes(x)
    blocks, wide = -(-rows // ROWS), min(64, nvidia.power(width, 16))
    groups = -(-width // wide)
    given = x, *nvidia.factors(gate, b), y, out, rows, width, blocks, groups
    nvidia.launch(kernels.gate, b * blocks * groups, *given, ROWS=ROWS, BD=wide, warps=4)
    return out


def gated_sum_backward(grad: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and y."""
    from udit.ops.gating import kernels

    grad, y = grad.contiguous(), y.contiguous()
    of_y = torch.empty_like(y)
    b, rows, width = sizes(y)
    wide = min(64, nvidia.power(width, 16))
    groups = -(-width // wide)
    steps = -(-rows // (ROWS * nvidia.bands(rows, b * groups)))
    bands = -(-rows // (ROWS * steps))
    of_gate = nvidia.sums(gate, b, bands, width)
    given = grad, *nvidia.factors(gate, b), y, of_y, of_gate, rows, width, bands, steps, groups
    nvidia.launch(kernels.gate_backward, b * bands * groups, *given, ROWS=ROWS, BD=wide, warps=4)
    return nvidia.summed(of_gate, gate), of_y
