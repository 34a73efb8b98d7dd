"""LayerNorm with its modulation by a condition (adaLN, Peebles & Xie 2023).

Axes: B batch, H and W side lengths, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udit.ops.layout import contiguous_like
from udit.ops.normalization import layer_norm
from udit.ops.operator import Function, Operator, Saved
from udit.ops.recompute import recomputable

EPS = 1e-6
KERNELS = {"cpu": "udit.ops.modulation.cpu", "cuda": "udit.ops.modulation.gpu"}


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine parameters (eps 1e-6), then ``x * (1 + scale) + shift``.

    Args:
        x: [B, H, W, D], or with any other axes between the first and the last.
        shift: [B, 1, 1, D].
        scale: as shift.

    Returns:
        As x.
    """
    return OPERATOR(x, shift, scale)


def reference(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``modulated_norm`` in torch."""
    return recomputable(torch.addcmul, shift, recomputable(layer_norm, x, None, None, EPS), 1 + scale)


def _fake(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and mean and inverse deviation of every row."""
    return contiguous_like(x), x.new_empty(*x.shape[:-1], 2, dtype=torch.float32)


def _fake_backward(grad: Tensor, x: Tensor, scale: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return contiguous_like(x), contiguous_like(scale), contiguous_like(scale)


BACKWARD = Function(
    "modulated_norm_backward(Tensor grad, Tensor x, Tensor scale, Tensor moments) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    KERNELS,
)


def _gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    x, _, scale = saved.inputs
    return BACKWARD(grad, x, scale, *saved.extras)


OPERATOR = Operator(
    "modulated_norm(Tensor x, Tensor shift, Tensor scale) -> (Tensor, Tensor)",
    reference,
    _fake,
    _gradient,
    KERNELS,
    recompute=True,
    added=["shift"],
)
