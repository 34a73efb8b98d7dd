"""LayerNorm with its modulation, and gated sums, on the CPU in one pass over memory by kernels of our own.

torch's operators read and write a map three times as often and keep its normalised form for backward; these keep two
numbers a row. Sums run in an order that depends on shapes alone, so the bits do not depend on the number of threads.

Axes: B batch, N pixels or tokens of a sample, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udit.nn import native

DTYPES = (torch.float32, torch.bfloat16)
"""Element types of maps that are compiled; all arithmetic is float32 for both."""
BAND = 64  # rows of a sum, as in fused_norm.cpp


def available(x: Tensor) -> bool:
    """Whether the kernels take this map."""
    return x.device.type == "cpu" and x.dtype in DTYPES and native.compiled("fused_norm")


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine (eps 1e-6), then x * (1 + scale) + shift.

    Args:
        x: [B, ..., D], ``available``.
        shift, scale: B * D elements.

    Returns:
        As x.
    """
    out, _ = _norm(x, shift.reshape(len(x), -1), scale.reshape(len(x), -1))
    return out


def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y; x and y [B, ..., D], x ``available``, gate of B * D elements."""
    return _gate(x, gate.reshape(len(x), -1), y.to(x.dtype))


torch.library.define("udit::modulated_norm", "(Tensor x, Tensor shift, Tensor scale) -> (Tensor, Tensor)")
torch.library.define(
    "udit::modulated_norm_backward", "(Tensor grad, Tensor x, Tensor scale, Tensor moments) -> (Tensor, Tensor, Tensor)"
)
torch.library.define("udit::gated_sum", "(Tensor x, Tensor gate, Tensor y) -> Tensor")
torch.library.define("udit::gated_sum_backward", "(Tensor grad, Tensor gate, Tensor y) -> (Tensor, Tensor)")


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """B, N, D."""
    return x.shape[0], x.numel() // (x.shape[0] * x.shape[-1]), x.shape[-1]


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """[B, D] as float32 with its channels side by side, and the elements from one row to the next."""
    x = x.float() if x.stride(1) == 1 else x.float().contiguous()
    return x, x.stride(0)


def _sums(x: Tensor, count: int) -> Tensor:
    """Room for sums over bands of rows."""
    b, n, d = _sizes(x)
    return torch.empty(count, b, -(-n // BAND), d)


@native.operator("modulated_norm")
def _norm(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """And mean and inverse deviation of every row."""
    x = x.contiguous()
    out, moments = torch.empty_like(x), torch.empty(*x.shape[:-1], 2)
    native.call("fused_norm", "norm", x.dtype, x, *_rows(shift), *_rows(scale), out, moments, *_sizes(x))
    return out, moments


@native.operator("modulated_norm_backward")
def _norm_backward(grad: Tensor, x: Tensor, scale: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, grad = x.contiguous(), grad.to(x.dtype).contiguous()
    to, sums = torch.empty_like(x), _sums(x, 2)
    native.call("fused_norm", "norm_backward", x.dtype, grad, x, *_rows(scale), moments, to, sums, *_sizes(x))
    of_shift, of_scale = sums.sum(2).to(scale.dtype)
    return to, of_shift.clone(), of_scale.clone()


@native.operator("gated_sum")
def _gate(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    native.call("fused_norm", "gate", x.dtype, x, *_rows(gate), y, out, *_sizes(x))
    return out


@native.operator("gated_sum_backward")
def _gate_backward(grad: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    y, grad = y.contiguous(), grad.to(y.dtype).contiguous()
    to, sums = torch.empty_like(y), _sums(y, 1)
    native.call("fused_norm", "gate_backward", y.dtype, grad, *_rows(gate), y, to, sums, *_sizes(y))
    return sums[0].sum(1).to(gate.dtype), to


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("udit::modulated_norm")  # type: ignore[untyped-decorator]
def _norm_shape(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty(*x.shape[:-1], 2, dtype=torch.float32)


@torch.library.register_fake("udit::modulated_norm_backward")  # type: ignore[untyped-decorator]
def _norm_backward_shape(grad: Tensor, x: Tensor, scale: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _like(scale), _like(scale)


@torch.library.register_fake("udit::gated_sum")  # type: ignore[untyped-decorator]
def _gate_shape(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return _like(x)


@torch.library.register_fake("udit::gated_sum_backward")  # type: ignore[untyped-decorator]
def _gate_backward_shape(grad: Tensor, gate: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _like(gate), _like(y)


def _keep_norm(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, scale = inputs
    ctx.save_for_backward(x, scale, output[1])
    ctx.mark_non_differentiable(output[1])


def _norm_gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _norm_backward(grad, *ctx.saved_tensors)
    return gradients


def _keep_gate(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, gate, y = inputs
    ctx.save_for_backward(gate, y)


def _gate_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return grad, *_gate_backward(grad, *ctx.saved_tensors)


torch.library.register_autograd("udit::modulated_norm", _norm_gradients, setup_context=_keep_norm)
torch.library.register_autograd("udit::gated_sum", _gate_gradients, setup_context=_keep_gate)
