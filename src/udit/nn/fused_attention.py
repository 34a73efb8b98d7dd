"""Attention within the sub-grids of a map on the CPU, by a kernel of our own.

It takes the product of queries, keys and values as it comes and keeps nothing for backward but that, the output and a
number a row: torch's operators need a dozen passes over memory for layout, rotation, norms and temperature, and their
attention is slow where heads are narrow. Memory is linear in tokens. Sums run in an order that depends on shapes
alone, so the kernel's bits do not depend on the number of threads.

Axes: B batch, H and W side lengths, D width, h heads, R channels a head, f sub-grids an axis, N tokens of a sub-grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from udit.nn import native

DTYPES = (torch.float32, torch.bfloat16)
"""Element types that are compiled; all arithmetic is float32 for both."""


def available(qkv: Tensor) -> bool:
    """Whether the kernel takes this product of queries, keys and values."""
    return qkv.device.type == "cpu" and qkv.dtype in DTYPES and native.compiled("fused_attention")


def fused_attention(qkv: Tensor, temperature: Tensor | None, table: Tensor | None, heads: int, factor: int) -> Tensor:
    """What the heads say: softmax of cosine similarity times temperature, or of the scaled dot product.

    Args:
        qkv: [B, H, W, 3 * h * R], ``available``; f divides H and W.
        temperature: [h] float32, or None for the scaled dot product.
        table: [2, N, R] float32 of ``rotary_table``, or None.
        heads: h.
        factor: f.

    Returns:
        [B, H, W, h * R].
    """
    out, _ = _attention(qkv, temperature, table, heads, factor)
    return out


torch.library.define(
    "udit::fused_attention",
    "(Tensor qkv, Tensor? temperature, Tensor? table, int heads, int factor) -> (Tensor, Tensor)",
)
torch.library.define(
    "udit::fused_attention_backward",
    "(Tensor grad, Tensor qkv, Tensor? temperature, Tensor? table, Tensor out, Tensor logs, int heads, int factor)"
    " -> (Tensor, Tensor)",
)


def _empty(qkv: Tensor, heads: int, factor: int) -> tuple[Tensor, Tensor]:
    """Output, and the logarithm of each row's sum of exponentials."""
    b, height, width, channels = qkv.shape
    rows = b * factor**2, heads, height * width // factor**2
    return qkv.new_empty(b, height, width, channels // 3), qkv.new_empty(rows, dtype=torch.float32)


@native.operator("fused_attention")
def _attention(
    qkv: Tensor, temperature: Tensor | None, table: Tensor | None, heads: int, factor: int
) -> tuple[Tensor, Tensor]:
    qkv = qkv.contiguous()
    out, logs = _empty(qkv, heads, factor)
    given = (qkv, _plain(temperature), _plain(table), out, logs)
    native.call("fused_attention", "attention", qkv.dtype, *given, *_sizes(qkv, heads, factor))
    return out, logs


@native.operator("fused_attention_backward")
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    temperature: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    logs: Tensor,
    heads: int,
    factor: int,
) -> tuple[Tensor, Tensor]:
    qkv = qkv.contiguous()
    of_qkv, of_temperature = torch.empty_like(qkv), torch.empty(logs.shape[:2])
    given = (grad.to(qkv.dtype).contiguous(), qkv, _plain(temperature), _plain(table), out, logs)
    made = (of_qkv, of_temperature)
    native.call("fused_attention", "attention_backward", qkv.dtype, *given, *made, *_sizes(qkv, heads, factor))
    return of_qkv, of_temperature.sum(0)


def _sizes(qkv: Tensor, heads: int, factor: int) -> tuple[int, ...]:
    """B, H, W, h, R, f."""
    b, height, width, channels = qkv.shape
    return b, height, width, heads, channels // (3 * heads), factor


def _plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@torch.library.register_fake("udit::fused_attention")  # type: ignore[untyped-decorator]
def _attention_shape(
    qkv: Tensor, temperature: Tensor | None, table: Tensor | None, heads: int, factor: int
) -> tuple[Tensor, Tensor]:
    return _empty(qkv, heads, factor)


@torch.library.register_fake("udit::fused_attention_backward")  # type: ignore[untyped-decorator]
def _attention_backward_shape(
    grad: Tensor,
    qkv: Tensor,
    temperature: Tensor | None,
    table: Tensor | None,
    out: Tensor,
    logs: Tensor,
    heads: int,
    factor: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), logs.new_empty(heads)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, temperature, table, ctx.heads, ctx.factor = inputs
    ctx.save_for_backward(qkv, temperature, table, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    qkv, temperature, table, out, logs = ctx.saved_tensors
    given = grad, qkv, temperature, table, out, logs, ctx.heads, ctx.factor
    of_qkv, of_temperature = _attention_backward(*given)
    return of_qkv, None if temperature is None else of_temperature, None, None, None


torch.library.register_autograd("udit::fused_attention", _backward, setup_context=_keep)


@register_flop_formula(torch.ops.udit.fused_attention)
def _flops(qkv: Any, temperature: Any, table: Any, heads: int, factor: int, *args: Any, **_: Any) -> int:
    b, height, width, channels = qkv
    return 4 * b * height * width * (height * width // factor**2) * (channels // 3)


@register_flop_formula(torch.ops.udit.fused_attention_backward)
def _backward_flops(
    grad: Any, qkv: Any, temperature: Any, table: Any, out: Any, logs: Any, *args: Any, **_: Any
) -> int:
    b, height, width, channels = qkv
    return 10 * b * height * width * logs[-1] * (channels // 3)
