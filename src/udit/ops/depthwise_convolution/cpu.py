"""Depthwise convolutions on the CPU.

torch's reach a third of a matrix product's speed forwards and a twentieth backwards. Sums run in an order that depends
on shapes alone, so bits do not depend on the number of threads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from udit.ops.build import FLOATS, INT, MAP, MAYBE_FLOATS, MAYBE_MAP, CFunction, Library

LIBRARY = Library("depthwise", Path(__file__).with_name("cpu.cpp"))
available, loaded = LIBRARY.available, LIBRARY.loaded
FILTER = CFunction(LIBRARY, "depthwise", MAP, FLOATS, MAYBE_FLOATS, INT, INT, MAYBE_MAP, MAP, *[INT] * 5)
OF_WEIGHTS = CFunction(LIBRARY, "depthwise_weights", MAP, MAP, INT, FLOATS, FLOATS, *[INT] * 5)
SIDES = (3, 5)
"""Kernel sides that are compiled."""
DTYPES = (torch.float32, torch.bfloat16)
"""Element types that are compiled; sums and weights are float32 for both."""


def accepts(x: Tensor, kernel: Tensor, bias: Tensor | None, gelu: bool) -> bool:
    """Element types and sides that are compiled."""
    return x.dtype in DTYPES and kernel.shape[-1] in SIDES


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """As the operator."""
    return _filter(x, kernel, bias, 0, int(gelu), None)


def depthwise_input(grad: Tensor, kernel: Tensor, activated: Tensor | None) -> Tensor:
    """The input's gradient; ``activated`` is the input where its GELU was filtered."""
    slopes = None if activated is None else activated.contiguous()
    return _filter(grad if slopes is None else grad.to(slopes.dtype), kernel, None, 1, 0, slopes)


def depthwise_weights(x: Tensor, grad: Tensor, side: int, gelu: bool) -> tuple[Tensor, Tensor]:
    """Gradients of kernel and bias, float32: one sum per image, then over images."""
    x, grad = x.contiguous(), grad.to(x.dtype).contiguous()
    kernel = torch.empty(x.shape[0], x.shape[-1], 1, side, side)
    bias = torch.empty(x.shape[0], x.shape[-1])
    OF_WEIGHTS(x.dtype, x, grad, int(gelu), kernel, bias, *x.shape, side)
    return kernel.sum(0), bias.sum(0)


def _filter(x: Tensor, kernel: Tensor, bias: Tensor | None, turned: int, gelu: int, slopes: Tensor | None) -> Tensor:
    """Filters x or its GELU (``turned``: kernel rotated by 180 degrees); times the GELU's slope at ``slopes``."""
    x, kernel = x.contiguous(), kernel.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    out = torch.empty_like(x)
    FILTER(x.dtype, x, kernel, bias, turned, gelu, slopes, out, *x.shape, kernel.shape[-1])
    return out
