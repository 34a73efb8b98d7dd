"""The selective scan on the CPU, forward and backward.

Jobs and their sums are the same for any number of threads, and so are the bits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from udit.ops.build import INT, MAP, CFunction, Library
from udit.ops.scan import CHUNK

LIBRARY = Library("selective_scan", Path(__file__).with_name("cpu.cpp"))
available, loaded = LIBRARY.available, LIBRARY.loaded
SCAN = CFunction(LIBRARY, "scan", *[MAP] * 7, *[INT] * 5)
SCAN_BACKWARD = CFunction(LIBRARY, "scan_backward", *[MAP] * 12, *[INT] * 5)
DTYPES = (torch.float32, torch.float64)
"""Element types that are compiled."""


def accepts(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> bool:
    """Float32 and float64."""
    return x.dtype in DTYPES


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """y, and the states before each chunk; all inputs contiguous and of one dtype."""
    x, delta, a, b, c = (part.contiguous() for part in (x, delta, a, b, c))
    out = torch.empty_like(x)
    entries = x.new_empty(x.shape[0], -(-x.shape[1] // CHUNK), *a.shape)
    SCAN(x.dtype, x, delta, a, b, c, out, entries, *x.shape, a.shape[1], CHUNK)
    return out, entries


def selective_scan_backward(
    grad: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, a, b and c; those of b and c are summed over blocks of channels here."""
    x, delta, a, b, c = (part.contiguous() for part in (x, delta, a, b, c))
    grad_x, grad_delta = torch.empty_like(x), torch.empty_like(x)
    blocks, samples = -(-x.shape[2] // LIBRARY.constant("lanes")), x.shape[0]
    grad_a = x.new_empty(samples, *a.shape)
    grad_b, grad_c = x.new_empty(blocks, *b.shape), x.new_empty(blocks, *c.shape)
    tensors = (grad.contiguous(), x, delta, a, b, c, entries, grad_x, grad_delta, grad_a, grad_b, grad_c)
    SCAN_BACKWARD(x.dtype, *tensors, *x.shape, a.shape[1], CHUNK)
    return grad_x, grad_delta, grad_a.sum(0), grad_b.sum(0), grad_c.sum(0)
