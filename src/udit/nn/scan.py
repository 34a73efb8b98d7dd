"""The selective scan (Gu & Dao 2023, Mamba): a recurrence whose coefficients depend on the tokens.

    h_l = exp(delta_l a) h_{l-1} + delta_l x_l b_l,    y_l = sum_n c_l h_l

Forward keeps the states at every CHUNK-th token only; backward makes the others again, chunk by chunk. So nothing of
the size L D N outlives a chunk, and memory grows with L alone.

Axes: B batch, L tokens, D channels, N states, Q tokens of a chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udit.nn import native

CHUNK = 32
"""Q; timed with benchmarks/scan.py: 64 is no faster compiled, and falls out of the cache in PyTorch."""
LANES = 16
"""Channels of one job of the compiled kernel, which returns the gradients of b and c for each."""
DTYPES = (torch.float32, torch.float64)
"""Element types that are compiled."""


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence above, from h = 0, in float32 at least.

    On a GPU mamba_ssm's kernel runs where it is installed; on a CPU one that is compiled on first use; elsewhere, and
    in exported programs, PyTorch.

    Args:
        x: [B, L, D].
        delta: [B, L, D] step sizes, positive.
        a: [D, N] rates, negative.
        b: [B, L, N] what of a token enters the states.
        c: [B, L, N] how the states are read.

    Returns:
        [B, L, D] in x's dtype.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    inputs = [part.to(precise).contiguous() for part in (x, delta, a, b, c)]
    if torch.compiler.is_exporting():
        return _forward(*inputs)[0].to(x.dtype)
    if x.is_cuda and precise == torch.float32 and not torch.compiler.is_compiling() and (fused := mamba_ssm()):
        return by_mamba_ssm(fused, *inputs).to(x.dtype)
    return _scan(*inputs)[0].to(x.dtype)


@functools.cache
def mamba_ssm() -> Callable[..., Tensor] | None:
    """mamba_ssm's CUDA scan, where it is installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def by_mamba_ssm(scan: Callable[..., Tensor], x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same through ``selective_scan_fn(u, delta, A, B, C)``, which has the tokens last: [B, D, L] and [B, N, L]."""
    u, steps, into, out_of = (part.transpose(1, 2).contiguous() for part in (x, delta, b, c))
    return scan(u, steps, a, into, out_of).transpose(1, 2)


# ---- in PyTorch ----------------------------------------------------------------------------------------------------


def states(decay: Tensor, entering: Tensor) -> Tensor:
    """h_l = decay_l h_{l-1} + entering_l, all [B, L, D, N]; overwrites ``entering`` where that is faster."""
    if entering.is_cpu and not torch.compiler.is_compiling():
        for token in range(1, entering.shape[1]):
            entering[:, token].addcmul_(decay[:, token], entering[:, token - 1])
        return entering
    reach = 1
    while reach < entering.shape[1]:  # all tokens at once, in log2 L rounds (Hillis & Steele 1986)
        far = torch.addcmul(entering[:, reach:], decay[:, reach:], entering[:, :-reach])
        entering = torch.cat([entering[:, :reach], far], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return entering


def _chunk(h: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states [B, Q, D, N] of some tokens that follow the states h [B, D, N]."""
    decay = (delta[..., None] * a).exp()
    entering = (delta * x)[..., None] * b[:, :, None]
    entering = torch.cat([torch.addcmul(entering[:, :1], decay[:, :1], h[:, None]), entering[:, 1:]], 1)
    return decay, states(decay, entering)


def _forward(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """y [B, L, D], and the states [B, L / Q, D, N] before each chunk."""
    h = x.new_zeros(x.shape[0], *a.shape)
    outs, entries = [], []
    for part in zip(*(tensor.split(CHUNK, dim=1) for tensor in (x, delta, b, c)), strict=True):
        entries.append(h)
        _, all_states = _chunk(h, part[0], part[1], a, part[2])
        outs.append((all_states * part[3][:, :, None]).sum(-1))
        h = all_states[:, -1]
    return torch.cat(outs, 1), torch.stack(entries, 1)


def _backward(
    grad_y: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, a, b and c, from the last chunk to the first."""
    carry = torch.zeros_like(entries[:, 0])  # what the tokens behind make of the states before them
    grad_a, parts = torch.zeros_like(a), []
    split = [tensor.split(CHUNK, dim=1) for tensor in (grad_y, x, delta, b, c)]
    for i, (g, x_i, delta_i, b_i, c_i) in reversed(list(enumerate(zip(*split, strict=True)))):
        decay, h = _chunk(entries[:, i], x_i, delta_i, a, b_i)
        seen = g[..., None] * c_i[:, :, None]
        seen = torch.cat([seen[:, :-1], seen[:, -1:] + carry[:, None]], 1)
        later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)
        grad_h = states(later.flip(1), seen.flip(1)).flip(1)
        carry = decay[:, 0] * grad_h[:, 0]
        exponent = grad_h * decay * torch.cat([entries[:, i, None], h[:, :-1]], 1)
        grad_input = (grad_h * b_i[:, :, None]).sum(-1)
        grad_a += (exponent * delta_i[..., None]).sum((0, 1))
        parts.append(
            (
                grad_input * delta_i,
                grad_input * x_i + (exponent * a).sum(-1),
                (grad_h * (delta_i * x_i)[..., None]).sum(2),
                (g[..., None] * h).sum(2),
            )
        )
    grad_x, grad_delta, grad_b, grad_c = (torch.cat(pieces[::-1], 1) for pieces in zip(*parts, strict=True))
    return grad_x, grad_delta, grad_a, grad_b, grad_c


# ---- as one operator, which autograd and torch.compile take whole ---------------------------------------------------


def _native(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in DTYPES and native.compiled("scan")


@torch.library.custom_op("udit::selective_scan", mutates_args=())
def _scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """y and the states before each chunk; all inputs contiguous, of one dtype."""
    if not _native(x):
        return _forward(x, delta, a, b, c)
    out, entries = _empty(x, delta, a, b, c)
    native.call("scan", "scan", x.dtype, x, delta, a, b, c, out, entries, *x.shape, a.shape[1], CHUNK)
    return out, entries


@_scan.register_fake
def _empty(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    chunks = -(-x.shape[1] // CHUNK)
    return torch.empty_like(x), x.new_empty(x.shape[0], chunks, *a.shape)


@torch.library.custom_op("udit::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``_scan``'s five inputs."""
    if not _native(x):
        return _backward(grad_y, x, delta, a, b, c, entries)
    grad_x, grad_delta = torch.empty_like(x), torch.empty_like(x)
    blocks, samples = -(-x.shape[2] // LANES), x.shape[0]
    grad_a = x.new_empty(samples, *a.shape)
    grad_b, grad_c = x.new_empty(blocks, *b.shape), x.new_empty(blocks, *c.shape)
    tensors = (grad_y.contiguous(), x, delta, a, b, c, entries, grad_x, grad_delta, grad_a, grad_b, grad_c)
    native.call("scan", "scan_backward", x.dtype, *tensors, *x.shape, a.shape[1], CHUNK)
    return grad_x, grad_delta, grad_a.sum(0), grad_b.sum(0), grad_c.sum(0)


@_scan_backward.register_fake
def _(grad_y: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, entries: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(part) for part in (x, delta, a, b, c))


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _differentiate(ctx: Any, grad_y: Tensor, _: Tensor | None) -> tuple[Tensor, ...]:
    return _scan_backward(grad_y, *ctx.saved_tensors)


_scan.register_autograd(_differentiate, setup_context=_remember)
