"""3x3 convolutions of maps.

Axes: B batch, H and W side lengths, I channels in, O channels out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.ops.layout import to_first, to_last
from udit.ops.matmul import unchanged
from udit.ops.operator import Function, Operator, Saved
from udit.ops.recompute import lowered

KERNELS = {"cpu": "udit.ops.convolution.cpu"}
COMMON = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
"""Kernel, stride, padding, dilation, groups and padding mode of the layers that the operator is for."""


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` of a map, x [B, H, W, I] -> [B, H, W, O].

    A 3x3 ``nn.Conv2d`` of stride 1 is run by the operator. Any other layer is called, as is one with hooks or one that
    was put in the place of a convolution; it takes and returns channels first.
    """
    if not unchanged(layer, nn.Conv2d):
        return to_last(layer(to_first(x)))
    ways = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    if ways == COMMON:
        return OPERATOR(x, layer.weight, layer.bias)
    return to_last(layer(to_first(lowered(x))))


def convolve_image(layer: nn.Module, x: Tensor) -> Tensor:
    """A network's first convolution: an image [B, C, H, W] -> a contiguous map [B, H', W', O].

    GPUs write the map with its channels last if the image, which is much smaller, comes so. On the CPU the image stays
    as it is: last bits would change.
    """
    if x.device.type != "cpu":
        x = x.contiguous(memory_format=torch.channels_last)
    return to_last(layer(x)).contiguous()


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator in torch: x [B, H, W, I], weight [O, I, 3, 3], bias [O] or None -> [B, H, W, O]."""
    return to_last(F.conv2d(to_first(lowered(x)), weight, bias, padding=1))


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_weights(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty(grad.shape[-1], x.shape[-1], 3, 3)


def _flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * torch.Size(x[:-1]).numel() * torch.Size(weight).numel()


def _weights_flops(x: Any, grad: Any, *_: Any, **__: Any) -> int:
    return 2 * torch.Size(x).numel() * grad[-1] * 9


WEIGHTS = Function("convolution_weights(Tensor x, Tensor grad) -> Tensor", _fake_weights, KERNELS, _weights_flops)
"""The weight's gradient [O, I, 3, 3]."""


def _gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    x, weight, _ = saved.inputs
    needs_x, needs_weight, needs_bias = saved.needed
    of_x = None
    if needs_x:
        sides = None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
        of_x = to_last(torch.ops.aten.convolution_backward(to_first(grad), to_first(x), weight, *sides)[0])
    return of_x, WEIGHTS(x, grad) if needs_weight else None, grad.sum((0, 1, 2)) if needs_bias else None


OPERATOR = Operator(
    "convolution(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    reference,
    _fake,
    _gradient,
    KERNELS,
    flops=_flops,
    added=["bias"],
)
