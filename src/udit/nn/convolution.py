"""3x3 convolutions of maps; on the CPU their weights' gradients come from a kernel of our own.

torch's convolutions are as fast as its matrix products, but the gradient of a weight takes twice as long. Sums run in
an order that depends on shapes alone, so the kernel's bits do not depend on the number of threads.

Axes: B batch, H and W side lengths, I channels in, O channels out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from udit.nn import native
from udit.nn.linear import lowered, plain
from udit.nn.tokens import to_first, to_last

NARROW = 16
"""Fewer channels in are torch's: the kernel takes two vectors of them at a time."""


def convolved(x: Tensor, layer: nn.Module) -> Tensor:
    """``layer(x)`` of a map, x [B, H, W, I] -> [B, H, W, O]; anything but a plain 3x3 convolution is simply called.

    Where the kernel runs, gradients have no gradients of their own.
    """
    if plain(layer, nn.Conv2d) and _ours(x, layer):
        return _convolution(x, layer.weight, layer.bias)
    return to_last(layer(to_first(lowered(x) if plain(layer, nn.Conv2d) else x)))


def _ours(x: Tensor, layer: nn.Conv2d) -> bool:
    """Whether the kernel will make the gradient of this layer's weight."""
    ways = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    if ways != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") or layer.in_channels < NARROW:
        return False
    learns = torch.is_grad_enabled() and layer.weight.requires_grad
    floats = x.device.type == "cpu" and x.dtype == layer.weight.dtype == torch.float32
    return learns and floats and not torch.is_autocast_enabled("cpu") and native.compiled("convolution")


torch.library.define("udit::convolution", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.define("udit::convolution_weights", "(Tensor x, Tensor grad) -> Tensor")


@native.operator("convolution")
def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return to_last(F.conv2d(to_first(x), weight, bias, padding=1)).contiguous()


@native.operator("convolution_weights")
def _weights(x: Tensor, grad: Tensor) -> Tensor:
    """[O, I, 3, 3]."""
    x, grad = x.contiguous(), grad.contiguous()
    to = x.new_empty(grad.shape[-1], x.shape[-1], 3, 3)
    if not grad.numel():
        return to.zero_()
    native.call("convolution", "weights", x.dtype, x, grad, to, *x.shape, grad.shape[-1])
    return to


@torch.library.register_fake("udit::convolution")  # type: ignore[untyped-decorator]
def _convolution_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("udit::convolution_weights")  # type: ignore[untyped-decorator]
def _weights_shape(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty(grad.shape[-1], x.shape[-1], 3, 3)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x = None
    if ctx.needs_input_grad[0]:
        sides = None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
        of_x = to_last(torch.ops.aten.convolution_backward(to_first(grad), to_first(x), weight, *sides)[0])
    of_weight = _weights(x, grad) if ctx.needs_input_grad[1] else None
    of_bias = grad.sum((0, 1, 2)) if ctx.biased and ctx.needs_input_grad[2] else None
    return of_x, of_weight, of_bias


torch.library.register_autograd("udit::convolution", _backward, setup_context=_keep)


@register_flop_formula(torch.ops.udit.convolution)
def _flops(x: Any, weight: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * torch.Size(x[:-1]).numel() * torch.Size(weight).numel()


@register_flop_formula(torch.ops.udit.convolution_weights)
def _weights_flops(x: Any, grad: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * torch.Size(x).numel() * grad[-1] * 9
