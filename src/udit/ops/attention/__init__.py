"""Attention: by scaled dot products or cosine similarity, with rotary positions, and within the sub-grids of a map.

Axes: B batch, H and W side lengths, h heads, R channels per head, f sub-grids per axis, N tokens (of a sub-grid).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from udit.ops import surroundings
from udit.ops.operator import Function, Operator, Saved, by_reference, differentiated
from udit.ops.recompute import recomputable

MAX_LOGIT_SCALE = 4.6052  # the U-DiT release's bound on the logarithm of the scale: about ln 100
KERNELS = {"cpu": "udit.ops.attention.cpu", "cuda": "udit.ops.attention.gpu"}


def grid_attention(qkv: Tensor, logit_scale: Tensor | None, rope: Tensor | None, *, heads: int, factor: int) -> Tensor:
    """Self-attention within the interleaved sub-grids of a map (Tian et al. 2024, Sec. 3.2).

    Args:
        qkv: [B, H, W, 3 * h * R], queries, keys and values; f divides H and W.
        logit_scale: [h] as in ``attend``, or None.
        rope: rotary table [2, N, R] of a sub-grid, or None.
        heads: h.
        factor: f; sub-grid (a, e) holds pixels (i * f + a, j * f + e).

    Returns:
        [B, H, W, h * R].
    """
    scale = None if logit_scale is None else scale_of(logit_scale, _precise(qkv))
    return OPERATOR(qkv, scale, rope, heads, factor)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logit_scale: Tensor | None = None,
    rope: Tensor | None = None,
    key_rope: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention by cosine similarity (Liu et al. 2022, Swin v2), or by scaled dot products without a ``logit_scale``.

    Args:
        q, k, v: [..., h, N, R]; k and v may have another N.
        logit_scale: [h] logarithm of each head's scale of similarities, bounded above by ln 100.
        rope: rotary table [2, N, R] of the queries, or None.
        key_rope: that of the keys where it is another.
        mask: bool, true where attention is allowed, or floats that are added to the scaled similarities; broadcasts to
            [..., h, N of q, N of k].

    Returns:
        [..., h, N, R] in v's dtype.
    """
    scale = None if logit_scale is None else scale_of(logit_scale, _precise(q))
    return _attend(q, k, v, scale, rope, key_rope, mask)


def _precise(x: Tensor) -> torch.dtype:
    """x's type, float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def scale_of(logit_scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """exp of the log scales [h], which are bounded above by ln 100."""
    return logit_scale.to(dtype).clamp(max=MAX_LOGIT_SCALE).exp()


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: Tensor | None,
    rope: Tensor | None,
    key_rope: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``attend`` with the scale itself.

    For cosines q and k are rotated and normalised in float32 at least: rows of zeros in float16 give NaN otherwise. The
    norm comes last, so that it removes the rounding of the float32 table too.
    """
    key_rope = rope if key_rope is None else key_rope
    if scale is None:
        if rope is not None and key_rope is not None:
            q, k = recomputable(rotate, q, rope), recomputable(rotate, k, key_rope)
        return dot_product_attention(q, k, v, mask)
    precise = _precise(q)
    q, k = q.to(precise), k.to(precise)
    if rope is not None and key_rope is not None:
        q, k = recomputable(rotate, q, rope), recomputable(rotate, k, key_rope)
    q, k = (recomputable(F.normalize, part, 2.0, -1, 1e-12) for part in (q, k))
    q = recomputable(torch.mul, q, scale[:, None, None])
    return dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, mask, scale=1.0)


def dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """torch's scaled dot-product attention, with derivatives of any order and kind.

    Of torch's own implementations only the plain one has forward and second derivatives and runs under ``vmap``. It is
    taken where one is asked for, a fast one otherwise.

    Args:
        q, k, v: [..., N, R]; k and v may have another N.
        mask: bool, true where attention is allowed, or floats that are added to the scaled products.
        scale: of the products; 1 / sqrt(R) if None.
    """
    if surroundings.transformed():
        with sdpa_kernel(SDPBackend.MATH):
            return _product(q, k, v, mask, scale)
    out = _product(q, k, v, mask, scale)
    if surroundings.recorded() or not out.requires_grad:
        return out
    plain: Tensor = _Differentiable.apply(out, q, k, v, mask, scale)
    return plain


def _product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class _Differentiable(torch.autograd.Function):
    """The identity of an attention's output, behind which its backward is chosen.

    A gradient goes on to the backward of the implementation that ran. One that is to have derivatives itself goes
    straight to queries, keys and values, through ``_product`` computed again in its plain form.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: Any) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not differentiated(grad):
            return grad, None, None, None, None, None
        q, k, v, mask = ctx.saved_tensors
        needed = *ctx.needs_input_grad[1:5], False
        return None, *by_reference(_product, grad, Saved((q, k, v, mask, ctx.scale), (), needed))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates each pair of channels by its token's angle.

    Args:
        x: [..., N, R].
        table: [2, N, R], cosines and signed sines (``udit.nn.tokens.rotary_table``).

    Returns:
        [..., N, R] in x's dtype; (a, b) -> (a cos - b sin, a sin + b cos).
    """
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * table[0].to(x.dtype) + swapped * table[1].to(x.dtype)


def split_grids(x: Tensor, factor: int, groups: int, heads: int) -> Tensor:
    """Interleaved sub-grids of a map, as attention takes them.

    Args:
        x: [B, H, W, groups * h * R]; factor divides H and W.
        factor: f.
        groups: 3 for queries, keys and values together.
        heads: h.

    Returns:
        [groups, B * f**2, h, H / f * W / f, R]; sub-grid (a, e) holds pixels (i * f + a, j * f + e).
    """
    b, height, width, channels = x.shape
    h, w = height // factor, width // factor
    x = x.view(b, h, factor, w, factor, groups, heads, channels // (groups * heads))
    return x.permute(5, 0, 2, 4, 6, 1, 3, 7).reshape(groups, b * factor**2, heads, h * w, -1)


def join_grids(x: Tensor, factor: int, height: int, width: int) -> Tensor:
    """The inverse of ``split_grids``: [B * f**2, h, N, R] -> [B, H, W, h * R]."""
    h, w = height // factor, width // factor
    heads, channels = x.shape[1], x.shape[3]
    x = x.transpose(1, 2).unflatten(1, (h, w)).unflatten(0, (-1, factor, factor)).permute(0, 3, 1, 4, 2, 5, 6)
    return x.reshape(-1, height, width, heads * channels)


def reference(qkv: Tensor, scale: Tensor | None, rope: Tensor | None, heads: int, factor: int) -> Tensor:
    """``grid_attention`` in torch."""
    q, k, v = split_grids(qkv, factor, 3, heads)
    return join_grids(_attend(q, k, v, scale, rope), factor, qkv.shape[1], qkv.shape[2])


def _fake(qkv: Tensor, scale: Tensor | None, rope: Tensor | None, heads: int, factor: int) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of each row's sum of exponentials."""
    b, height, width, channels = qkv.shape
    rows = b * factor**2, heads, height * width // factor**2
    return qkv.new_empty(b, height, width, channels // 3), qkv.new_empty(rows, dtype=torch.float32)


def _fake_backward(
    grad: Tensor,
    qkv: Tensor,
    scale: Tensor | None,
    rope: Tensor | None,
    out: Tensor,
    logs: Tensor,
    heads: int,
    factor: int,
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), logs.new_empty(logs.shape[:2])


def _flops(qkv: Any, scale: Any, rope: Any, heads: int, factor: int, *_: Any, **__: Any) -> int:
    b, height, width, channels = qkv
    return 4 * b * height * width * (height * width // factor**2) * (channels // 3)


def _backward_flops(grad: Any, qkv: Any, scale: Any, rope: Any, out: Any, logs: Any, *_: Any, **__: Any) -> int:
    b, height, width, channels = qkv
    return 10 * b * height * width * logs[-1] * (channels // 3)


BACKWARD = Function(
    "grid_attention_backward(Tensor grad, Tensor qkv, Tensor? scale, Tensor? rope, Tensor out, Tensor logs, int heads, "
    "int factor) -> (Tensor, Tensor)",
    _fake_backward,
    KERNELS,
    _backward_flops,
)
"""Gradients of qkv, and of the scales one sum for each sub-grid."""


def _gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    qkv, scale, rope, heads, factor = saved.inputs
    of_qkv, of_scale = BACKWARD(grad, qkv, scale, rope, *saved.extras, heads, factor)
    return of_qkv, None if scale is None else of_scale.sum(0), None, None, None


OPERATOR = Operator(
    "grid_attention(Tensor qkv, Tensor? scale, Tensor? rope, int heads, int factor) -> (Tensor, Tensor)",
    reference,
    _fake,
    _gradient,
    KERNELS,
    flops=_flops,
    output_needed=True,
)
