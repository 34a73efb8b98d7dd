"""How kernels for the CPU see maps that a condition acts on: rows of channels, the same factors for a sample's rows.

Axes: B batch, N rows (pixels or tokens) of a sample, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16)
"""Element types of maps that are compiled; all arithmetic is float32 for both."""


def sizes(x: Tensor) -> tuple[int, int, int]:
    """B, N and D of a map."""
    return x.shape[0], x.numel() // (x.shape[0] * x.shape[-1]), x.shape[-1]


def factors(x: Tensor, batch: int) -> tuple[Tensor, int]:
    """Float32 [B, ..., D], B * D elements with channels side by side, and the elements from one row to the next."""
    if x.shape[0] != batch or x.numel() != batch * x.shape[-1]:
        x = x.reshape(batch, -1)
    x = x.float() if x.stride(-1) == 1 else x.float().contiguous()
    return x, x.stride(0)


def band_sums(x: Tensor, count: int, band: int) -> Tensor:
    """Room for ``count`` sums over each ``band`` rows of a map: float32 [count, B, bands, D]."""
    b, n, d = sizes(x)
    return torch.empty(count, b, -(-n // band), d)
