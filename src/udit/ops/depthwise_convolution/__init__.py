"""Depthwise convolutions of maps.

Axes: B batch, H and W side lengths, D width, s side of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udit.ops.layout import contiguous_like, to_first, to_last
from udit.ops.operator import Added, Function, Operator, Saved

KERNELS = {"cpu": "udit.ops.depthwise_convolution.cpu", "cuda": "udit.ops.depthwise_convolution.gpu"}


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """Depthwise convolution with stride 1 and zero padding that keeps H and W.

    Args:
        x: [B, H, W, D].
        kernel: [D, 1, s, s], s odd.
        bias: [D].
        gelu: whether the (exact) GELU of x is filtered instead of x. Compiled kernels compute it within the
            convolution, and recompute it in backward.

    Returns:
        [B, H, W, D].
    """
    return OPERATOR(x, kernel, bias, gelu)


def reference(x: Tensor, kernel: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """``depthwise`` in torch."""
    x = to_first(F.gelu(x) if gelu else x)
    return to_last(F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, groups=kernel.shape[0]))


def _fake(x: Tensor, kernel: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return contiguous_like(x)


def _fake_input(grad: Tensor, kernel: Tensor, activated: Tensor | None) -> Tensor:
    return contiguous_like(grad)


def _fake_weights(x: Tensor, grad: Tensor, side: int, gelu: bool) -> tuple[Tensor, Tensor]:
    width = x.shape[-1]
    return x.new_empty(width, 1, side, side, dtype=torch.float32), x.new_empty(width, dtype=torch.float32)


def _flops(x: Any, kernel: Any, *_: Any, **__: Any) -> int:
    return 2 * torch.Size(x).numel() * kernel[-1] ** 2


def _weights_flops(x: Any, grad: Any, side: int, *_: Any, **__: Any) -> int:
    return 2 * torch.Size(x).numel() * side**2


INPUT = Function(
    "depthwise_input(Tensor grad, Tensor kernel, Tensor? activated) -> Tensor", _fake_input, KERNELS, _flops
)
"""The input's gradient; ``activated`` is the input where its GELU was filtered."""
WEIGHTS = Function(
    "depthwise_weights(Tensor x, Tensor grad, int side, bool gelu) -> (Tensor, Tensor)",
    _fake_weights,
    KERNELS,
    _weights_flops,
)
"""Gradients of kernel and bias, in float32."""


def _gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    x, kernel, bias, gelu = saved.inputs
    needs_x, needs_kernel, needs_bias, _ = saved.needed
    of_x = INPUT(grad, kernel, x if gelu else None) if needs_x else None
    if not needs_kernel and not needs_bias:
        return of_x, None, None, None
    of_kernel, of_bias = WEIGHTS(x, grad, kernel.shape[-1], gelu)
    return of_x, of_kernel.to(kernel.dtype), of_bias.to(bias.dtype) if isinstance(bias, Added) else None, None


OPERATOR = Operator(
    "depthwise(Tensor x, Tensor kernel, Tensor? bias, bool gelu) -> Tensor",
    reference,
    _fake,
    _gradient,
    KERNELS,
    flops=_flops,
    recompute=True,
    added=["bias"],
)
