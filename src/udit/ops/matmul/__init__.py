"""Matrix products of maps and tokens with weights.

Axes: I channels in, M channels in the middle, O channels out.
"""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.ops import surroundings
from udit.ops.operator import Function, Operator, Saved
from udit.ops.recompute import lowered

L = TypeVar("L", bound=nn.Module)

KERNELS = {"cpu": "udit.ops.matmul.cpu"}
NARROW = 1 << 14
"""Elements of a weight: with more, torch's product is as fast in backward, where there is no bias to add."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b``.

    Args:
        x: [..., I].
        weight: [O, I].
        bias: [O] or None.

    Returns:
        [..., O].
    """
    return OPERATOR(x, weight, bias)


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` through ``linear``, x [..., I] -> [..., O].

    A layer that was put in the place of an ``nn.Linear``, for low-rank adaptation or quantisation, or that has hooks,
    its own or those of all modules, is called.
    """
    if unchanged(layer, nn.Linear):
        return linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def apply_chain(first: nn.Linear, second: nn.Linear, x: Tensor) -> Tensor:
    """``second(first(x))``, x [..., I] -> [..., O], by the product of both weights unless one by one costs less.

    The product's operations do not depend on the number of rows, so for few rows it is one by one. An exported program
    serves any number of rows, and multiplies the weights. Layers that were put in the place of an ``nn.Linear``, and
    those with hooks of their own, are called one by one.
    """
    if not all(unchanged(layer, nn.Linear, everywhere=False) for layer in (first, second)):
        return apply(second, apply(first, x))
    inner, middle, outer = first.in_features, first.out_features, second.out_features
    if not surroundings.exporting():
        rows = x.numel() // inner
        if rows * middle * (inner + outer) < (rows + middle) * inner * outer:
            return apply(second, apply(first, x))
    return linear(x, *composed(first, second))


def composed(first: nn.Linear, second: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight [O, I] and bias [O] of ``second(first(x))``, differentiable in both."""
    return second.weight @ first.weight, second.weight @ first.bias + second.bias


def unchanged(layer: nn.Module, kind: type[L], everywhere: bool = True) -> TypeGuard[L]:
    """Whether a layer is exactly of a kind and has no hooks, so that its weight may be used without calling it.

    Hooks that all modules have count where asked ``everywhere``.
    """
    return type(layer) is kind and not surroundings.hooked(layer, everywhere)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``linear`` in torch."""
    return F.linear(lowered(x), weight, bias)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_input(grad: Tensor, weight: Tensor) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


def _flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * torch.Size(x[:-1]).numel() * weight[0] * weight[1]


INPUT = Function("linear_input(Tensor grad, Tensor weight) -> Tensor", _fake_input, KERNELS, _flops)
"""The input's gradient."""


def _gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    x, weight, _ = saved.inputs
    rows, (needs_x, needs_weight, needs_bias) = grad.flatten(0, -2), saved.needed
    of_x = None
    if needs_x:
        of_x = INPUT(grad, weight) if weight.numel() <= NARROW else grad @ weight
    return of_x, rows.t() @ x.flatten(0, -2) if needs_weight else None, rows.sum(0) if needs_bias else None


OPERATOR = Operator(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    reference,
    _fake,
    _gradient,
    KERNELS,
    flops=_flops,
    added=["bias"],
)
