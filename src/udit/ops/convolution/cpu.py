"""3x3 convolutions on the CPU: torch's own, and a kernel for the weight's gradient.

torch's convolutions are as fast as its matrix products, but the gradient of a weight takes twice as long. Sums run in
an order that depends on shapes alone, so the kernel's bits do not depend on the number of threads.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from udit.ops.build import FLOATS, INT, CFunction, Library
from udit.ops.layout import to_first, to_last

LIBRARY = Library("convolution", Path(__file__).with_name("cpu.cpp"))
available, loaded = LIBRARY.available, LIBRARY.loaded
OF_WEIGHTS = CFunction(LIBRARY, "weights", FLOATS, FLOATS, FLOATS, INT, INT, INT, INT, INT)
NARROW = 16
"""With fewer input channels torch's operator runs: the kernel takes two vectors of them at a time."""


def accepts(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Float32 outside of autocast, enough channels, and a weight whose gradient will be asked for."""
    learns = torch.is_grad_enabled() and weight.requires_grad
    floats = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return learns and floats and weight.shape[1] >= NARROW


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As the operator."""
    return to_last(F.conv2d(to_first(x), weight, bias, padding=1)).contiguous()


def convolution_weights(x: Tensor, grad: Tensor) -> Tensor:
    """The weight's gradient [O, I, 3, 3]."""
    x, grad = x.contiguous(), grad.contiguous()
    out = x.new_empty(grad.shape[-1], x.shape[-1], 3, 3)
    if not grad.numel():
        return out.zero_()
    OF_WEIGHTS(x.dtype, x, grad, out, *x.shape, grad.shape[-1])
    return out
