"""Gated sums on the CPU in one pass over memory.

Sums run in an order that depends on shapes alone, so bits do not depend on the number of threads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from udit.ops.build import FLOATS, INT, MAP, ROWS, CFunction, Library
from udit.ops.rows import DTYPES, band_sums, factors, sizes

LIBRARY = Library("gated_sum", Path(__file__).with_name("cpu.cpp"))
available, loaded = LIBRARY.available, LIBRARY.loaded
GATE = CFunction(LIBRARY, "gate", MAP, ROWS, INT, MAP, MAP, INT, INT, INT)
GATE_BACKWARD = CFunction(LIBRARY, "gate_backward", MAP, ROWS, INT, MAP, MAP, FLOATS, INT, INT, INT)


def accepts(x: Tensor, gate: Tensor, y: Tensor) -> bool:
    """Maps of float32 and bfloat16."""
    return x.dtype in DTYPES


def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """As the operator; y is cast to x's type."""
    x, y = x.contiguous(), y.to(x.dtype).contiguous()
    out = torch.empty_like(x)
    GATE(x.dtype, x, *factors(gate, len(x)), y, out, *sizes(x))
    return out


def gated_sum_backward(grad: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and y."""
    grad, given = grad.contiguous(), y.to(grad.dtype).contiguous()
    of_y, sums = torch.empty_like(given), band_sums(given, 1, LIBRARY.constant("band"))
    GATE_BACKWARD(grad.dtype, grad, *factors(gate, len(y)), given, of_y, sums, *sizes(y))
    return sums[0].sum(1).to(gate.dtype).view(gate.shape), of_y if y.dtype == grad.dtype else of_y.to(y.dtype)
