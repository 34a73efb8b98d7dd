"""Modulated norms on the CPU in one pass over memory.

torch's operators read and write a map three times as often and keep its normalised form for backward; this kernel keeps
two numbers per row. Sums run in an order that depends on shapes alone, so bits do not depend on the number of threads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from udit.ops.build import FLOATS, INT, MAP, ROWS, CFunction, Library
from udit.ops.rows import DTYPES, band_sums, factors, sizes

LIBRARY = Library("modulated_norm", Path(__file__).with_name("cpu.cpp"))
available, loaded = LIBRARY.available, LIBRARY.loaded
NORM = CFunction(LIBRARY, "norm", MAP, ROWS, INT, ROWS, INT, MAP, FLOATS, INT, INT, INT)
NORM_BACKWARD = CFunction(LIBRARY, "norm_backward", MAP, MAP, ROWS, INT, FLOATS, MAP, FLOATS, INT, INT, INT)


def accepts(x: Tensor, shift: Tensor, scale: Tensor) -> bool:
    """Maps of float32 and bfloat16."""
    return x.dtype in DTYPES


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and mean and inverse deviation of every row."""
    x, batch = x.contiguous(), len(x)
    out, moments = torch.empty_like(x), torch.empty(*x.shape[:-1], 2)
    NORM(x.dtype, x, *factors(shift, batch), *factors(scale, batch), out, moments, *sizes(x))
    return out, moments


def modulated_norm_backward(grad: Tensor, x: Tensor, scale: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shift and scale."""
    x, grad = x.contiguous(), grad.to(x.dtype).contiguous()
    of_x, sums = torch.empty_like(x), band_sums(x, 2, LIBRARY.constant("band"))
    NORM_BACKWARD(x.dtype, grad, x, *factors(scale, len(x)), moments, of_x, sums, *sizes(x))
    of_shift, of_scale = sums.sum(2).to(scale.dtype)
    return of_x, of_shift.clone().view(scale.shape), of_scale.clone().view(scale.shape)
