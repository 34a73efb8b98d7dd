"""Sums of a map and what a block adds to it, gated by a condition (adaLN-Zero, Peebles & Xie 2023).

Axes: B batch, H and W side lengths, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udit.ops.layout import contiguous_like
from udit.ops.operator import Function, Operator, Saved

KERNELS = {"cpu": "udit.ops.gating.cpu", "cuda": "udit.ops.gating.gpu"}


def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """``x + gate * y``.

    Args:
        x: [B, H, W, D], or with any other axes between the first and the last.
        gate: [B, 1, 1, D].
        y: as x.

    Returns:
        As x.
    """
    return OPERATOR(x, gate, y)


def reference(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """``gated_sum`` in torch."""
    return torch.addcmul(x, gate, y)


def _fake(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return contiguous_like(x)


def _fake_backward(grad: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return contiguous_like(gate), contiguous_like(y)


BACKWARD = Function(
    "gated_sum_backward(Tensor grad, Tensor gate, Tensor y) -> (Tensor, Tensor)", _fake_backward, KERNELS
)


def _gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    return grad, *BACKWARD(grad, *saved.inputs[1:])


OPERATOR = Operator(
    "gated_sum(Tensor x, Tensor gate, Tensor y) -> Tensor",
    reference,
    _fake,
    _gradient,
    KERNELS,
    recompute=True,
    added=["x"],
)
