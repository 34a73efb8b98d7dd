"""The selective scan in torch on any device, with a backward of its own that computes states again chunk by chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from udit.ops.scan import CHUNK, coefficients, in_rounds


def available() -> bool:
    """Always."""
    return True


loaded = available


def accepts(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> bool:
    """Anything."""
    return True


def in_place(decay: Tensor, entering: Tensor) -> Tensor:
    """``in_rounds``; overwrites ``entering`` token by token where that is faster."""
    if not entering.is_cpu:
        return in_rounds(decay, entering)
    for token in range(1, entering.shape[1]):
        entering[:, token].addcmul_(decay[:, token], entering[:, token - 1])
    return entering


def selective_scan_in_torch(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """y [B, L, D], and the states [B, L / Q, D, N] before each chunk."""
    h = x.new_zeros(x.shape[0], *a.shape)
    outs, entries = [], []
    for part in zip(*(tensor.split(CHUNK, dim=1) for tensor in (x, delta, b, c)), strict=True):
        entries.append(h)
        states = in_place(*coefficients(h, part[0], part[1], a, part[2]))
        outs.append((states * part[3][:, :, None]).sum(-1))
        h = states[:, -1]
    return torch.cat(outs, 1), torch.stack(entries, 1)


def selective_scan_in_torch_backward(
    grad: Tensor, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, entries: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, delta, a, b and c, from the last chunk to the first."""
    carry = torch.zeros_like(entries[:, 0])  # gradient of the states before the chunk that was last computed
    grad_a, parts = torch.zeros_like(a), []
    split = [tensor.split(CHUNK, dim=1) for tensor in (grad, x, delta, b, c)]
    for i, (g, x_i, delta_i, b_i, c_i) in reversed(list(enumerate(zip(*split, strict=True)))):
        decay, entering = coefficients(entries[:, i], x_i, delta_i, a, b_i)
        h = in_place(decay, entering)
        seen = g[..., None] * c_i[:, :, None]
        seen = torch.cat([seen[:, :-1], seen[:, -1:] + carry[:, None]], 1)
        later = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)
        grad_h = in_place(later.flip(1), seen.flip(1)).flip(1)
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
