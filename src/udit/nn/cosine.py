"""What cosine attention takes, made from the product of queries, keys and values in one pass over memory.

torch's operators need a dozen passes for the same: layout, rotation, norms, temperature, and more again backwards.

Axes: B batch, H and W side lengths, h heads, R channels a head, f sub-grids an axis, N tokens of a sub-grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udit.nn import native

DTYPES = (torch.float32, torch.bfloat16)
"""Element types that are compiled; norms are float32 for both."""


def cosine_heads(
    qkv: Tensor, temperature: Tensor, table: Tensor | None, heads: int, factor: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of every sub-grid; the first two turned and of length 1, queries times the temperature.

    Args:
        qkv: [B, H, W, 3 * h * R]; one of DTYPES on the CPU, and ``native.compiled("cosine")``.
        temperature: [h] float32.
        table: [2, N, R] float32 of ``rotary_table``, or None.
        heads: h.
        factor: f.

    Returns:
        Three of [B * f**2, h, N, R].
    """
    parts = torch.ops.udit.cosine_heads(qkv, temperature, table, heads, factor)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    return q, k, v


torch.library.define(
    "udit::cosine_heads",
    "(Tensor qkv, Tensor temperature, Tensor? table, int heads, int factor) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "udit::cosine_heads_backward",
    "(Tensor gq, Tensor gk, Tensor gv, Tensor qkv, Tensor temperature, Tensor? table, int heads, int factor)"
    " -> (Tensor, Tensor)",
)


def _parts(qkv: Tensor, factor: int) -> list[Tensor]:
    b, height, width, channels = qkv.shape
    shape = (b * factor**2, height * width // factor**2, channels // 3)
    return [qkv.new_empty(shape) for _ in range(3)]


@torch.library.impl("udit::cosine_heads", "CPU")
def _heads(
    qkv: Tensor, temperature: Tensor, table: Tensor | None, heads: int, factor: int
) -> tuple[Tensor, Tensor, Tensor]:
    qkv = qkv.contiguous()
    b, height, width, channels = qkv.shape
    q, k, v = _parts(qkv, factor)
    sizes = (b, height, width, heads, channels // (3 * heads), factor)
    native.call("cosine", "cosine", qkv.dtype, qkv, temperature.contiguous(), table, q, k, v, *sizes)
    return q, k, v


@torch.library.impl("udit::cosine_heads_backward", "CPU")
def _heads_backward(
    gq: Tensor,
    gk: Tensor,
    gv: Tensor,
    qkv: Tensor,
    temperature: Tensor,
    table: Tensor | None,
    heads: int,
    factor: int,
) -> tuple[Tensor, Tensor]:
    qkv = qkv.contiguous()
    b, height, width, channels = qkv.shape
    grads = [grad.to(qkv.dtype).contiguous() for grad in (gq, gk, gv)]
    out, sums = torch.empty_like(qkv), torch.empty(b * height, heads)
    sizes = (b, height, width, heads, channels // (3 * heads), factor)
    given = (*grads, qkv, temperature.contiguous(), table)
    native.call("cosine", "cosine_backward", qkv.dtype, *given, out, sums, *sizes)
    return out, sums.sum(0)


@torch.library.register_fake("udit::cosine_heads")  # type: ignore[untyped-decorator]
def _heads_shape(
    qkv: Tensor, temperature: Tensor, table: Tensor | None, heads: int, factor: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _parts(qkv, factor)
    return q, k, v


@torch.library.register_fake("udit::cosine_heads_backward")  # type: ignore[untyped-decorator]
def _heads_backward_shape(
    gq: Tensor,
    gk: Tensor,
    gv: Tensor,
    qkv: Tensor,
    temperature: Tensor,
    table: Tensor | None,
    heads: int,
    factor: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), torch.empty_like(temperature)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, temperature, table, ctx.heads, ctx.factor = inputs
    ctx.save_for_backward(qkv, temperature, table)


def _backward(ctx: Any, gq: Tensor, gk: Tensor, gv: Tensor) -> tuple[Tensor | None, ...]:
    of_qkv, of_temperature = torch.ops.udit.cosine_heads_backward(gq, gk, gv, *ctx.saved_tensors, ctx.heads, ctx.factor)
    return of_qkv, of_temperature, None, None, None


torch.library.register_autograd("udit::cosine_heads", _backward, setup_context=_keep)
