"""Matrix products of maps and tokens with weights, on the CPU by a kernel of our own.

A U has many and small ones: with a bias this is a tenth faster than torch's, and half as fast again where the sides are
as narrow as 32. Sums run in an order that depends on shapes alone, so the bits do not depend on the number of threads.

Axes: I channels in, O channels out.
"""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.flop_counter import register_flop_formula

from udit.nn import native
from udit.nn.recompute import autocast_dtype, cheap

L = TypeVar("L", bound=nn.Module)

ROWS = 32
"""Fewer rows are torch's: reading the weight is all their work."""

NARROW = 1 << 14
"""Elements of a weight: with more, torch's product is as fast in backward, where there is no bias to add."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b.

    Args:
        x: [..., I].
        weight: [O, I].
        bias: [O] or None.

    Returns:
        [..., O].
    """
    ours = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and native.compiled("linear")
    if ours and not torch.is_autocast_enabled("cpu") and x.numel() >= ROWS * x.shape[-1]:
        return _product(x, weight, bias)
    return F.linear(lowered(x), weight, bias)


def lowered(x: Tensor) -> Tensor:
    """x as autocast hands it to a product: said here, so that backward need not keep it if it is cheap."""
    dtype = autocast_dtype(x.device.type) if x.dtype == torch.float32 else None
    return x if dtype is None else cheap(Tensor.to, x, dtype)


def affine(x: Tensor, layer: nn.Module) -> Tensor:
    """``layer(x)`` through ``linear``, x [..., I] -> [..., O].

    A layer that was put in another's place, for low-rank adaption or quantisation, or that somebody watches by hooks,
    its own or those of all modules, is simply called.
    """
    if plain(layer, nn.Linear):
        return linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def plain(layer: nn.Module, kind: type[L]) -> TypeGuard[L]:
    """Whether a layer is just of that kind and nobody watches it, so that its weight may be used without a call."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return type(layer) is kind and not any(hooks) and not _has_any_global_hook()


torch.library.define("udit::linear", "(Tensor x, Tensor weight, Tensor? bias, bool across=True) -> Tensor")


@native.operator("linear")
def _product(x: Tensor, weight: Tensor, bias: Tensor | None, across: bool = True) -> Tensor:
    """Not ``across``, the weight is [I, O]: so a gradient of the output becomes that of the input."""
    x, weight = x.contiguous(), weight.contiguous()
    inner, outer = weight.shape[::-1] if across else weight.shape
    out = x.new_empty(*x.shape[:-1], outer)
    bias = None if bias is None else bias.contiguous()
    native.call("linear", "linear", x.dtype, x, weight, bias, out, x.numel() // inner, outer, inner, int(across))
    return out


@torch.library.register_fake("udit::linear")  # type: ignore[untyped-decorator]
def _product_shape(x: Tensor, weight: Tensor, bias: Tensor | None, across: bool = True) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0 if across else 1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    rows = grad.flatten(0, -2)
    of_x = None
    if ctx.needs_input_grad[0]:
        narrow = weight.numel() <= NARROW
        of_x = _product(grad, weight, None, False) if narrow else grad @ weight
    of_weight = rows.t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
    of_bias = rows.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None
    return of_x, of_weight, of_bias, None


torch.library.register_autograd("udit::linear", _backward, setup_context=_keep)


@register_flop_formula(torch.ops.udit.linear)
def _flops(x: Any, weight: Any, *args: Any, out_shape: Any = None, **_: Any) -> int:
    rows = torch.Size(x[:-1]).numel()
    return 2 * rows * weight[0] * weight[1]
