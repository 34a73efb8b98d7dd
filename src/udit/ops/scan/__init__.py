"""The selective scan (Gu & Dao 2023, Mamba): a recurrence whose coefficients depend on the tokens.

    h_l = exp(delta_l a) h_{l-1} + delta_l x_l b_l,    y_l = sum_n c_l h_l

Kernels keep the states before every CHUNK-th token only; backward computes the others again, chunk by chunk. So nothing
of the size L D N outlives a chunk, and memory grows with L alone.

Axes: B batch, L tokens, D channels, N states, Q tokens of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from udit.ops.layout import contiguous_like
from udit.ops.operator import Function, Operator, Saved

CHUNK = 32
"""Q; timed with benchmarks/scan.py: 64 is no faster compiled, and exceeds the cache in torch."""
KERNELS = {"cpu": "udit.ops.scan.cpu", "cuda": "udit.ops.scan.gpu"}
IN_TORCH = {"default": "udit.ops.scan.portable"}


def selective_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence above, from h = 0, in float32 at least.

    Args:
        x: [B, L, D].
        delta: [B, L, D] step sizes, positive.
        a: [D, N] rates, negative.
        b: [B, L, N] input coefficients of the states.
        c: [B, L, N] output coefficients of the states.

    Returns:
        [B, L, D] in x's dtype.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    return OPERATOR(*(part.to(precise).contiguous() for part in (x, delta, a, b, c))).to(x.dtype)


def reference(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``selective_scan`` in torch, all states of a chunk at a time, with derivatives of any order."""
    h = x.new_zeros(x.shape[0], *a.shape)
    outs = []
    for part in zip(*(tensor.split(CHUNK, dim=1) for tensor in (x, delta, b, c)), strict=True):
        decay, entering = coefficients(h, part[0], part[1], a, part[2])
        states = in_rounds(decay, entering)
        outs.append((states * part[3][:, :, None]).sum(-1))
        h = states[:, -1]
    return torch.cat(outs, 1)


def coefficients(h: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Decays of the states and what enters them, [B, Q, D, N], for tokens that follow the states h [B, D, N]."""
    decay = (delta[..., None] * a).exp()
    entering = (delta * x)[..., None] * b[:, :, None]
    return decay, torch.cat([torch.addcmul(entering[:, :1], decay[:, :1], h[:, None]), entering[:, 1:]], 1)


def in_rounds(decay: Tensor, entering: Tensor) -> Tensor:
    """h_l = decay_l h_{l-1} + entering_l, all [B, L, D, N], in log2 L rounds (Hillis & Steele 1986)."""
    reach = 1
    while reach < entering.shape[1]:
        far = torch.addcmul(entering[:, reach:], decay[:, reach:], entering[:, :-reach])
        entering = torch.cat([entering[:, :reach], far], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return entering


SCHEMA = "(Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = (
    "(Tensor grad, Tensor x, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor entries)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _fake(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the states before each chunk [B, L / Q, D, N]."""
    return contiguous_like(x), x.new_empty(x.shape[0], -(-x.shape[1] // CHUNK), *a.shape)


def _fake_backward(
    grad: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return contiguous_like(x), contiguous_like(x), contiguous_like(a), contiguous_like(b), contiguous_like(c)


BACKWARD = Function("selective_scan_backward" + BACKWARD_SCHEMA, _fake_backward, {"cpu": KERNELS["cpu"]})
BACKWARD_IN_TORCH = Function("selective_scan_in_torch_backward" + BACKWARD_SCHEMA, _fake_backward, IN_TORCH)


def _gradient(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    return BACKWARD(grad, *saved.inputs, *saved.extras)


def _gradient_in_torch(grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    return BACKWARD_IN_TORCH(grad, *saved.inputs, *saved.extras)


PORTABLE = Operator("selective_scan_in_torch" + SCHEMA, reference, _fake, _gradient_in_torch, IN_TORCH, compiled=False)
"""The scan where there is no kernel, on any device, with the kernels' memory: the reference keeps all states."""
OPERATOR = Operator("selective_scan" + SCHEMA, reference, _fake, _gradient, KERNELS, otherwise=PORTABLE)
