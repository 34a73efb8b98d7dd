"""The selective scan on NVIDIA GPUs by mamba_ssm's kernel, where that package is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from udit.ops.operator import Saved, by_reference, differentiated
from udit.ops.scan import reference


@functools.cache
def mamba_ssm() -> Callable[..., Tensor] | None:
    """mamba_ssm's function, or None where it is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def available() -> bool:
    """Whether mamba_ssm is installed."""
    return mamba_ssm() is not None


def loaded() -> bool:
    """False: compiled graphs do not take a function with a gradient of its own."""
    return False


def accepts(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> bool:
    """Float32."""
    return x.dtype == torch.float32


def apply(*inputs: Tensor) -> Tensor:
    """The output, by a function that brings its own gradient."""
    scan = mamba_ssm()
    assert scan is not None
    return _ByMamba.apply(scan, *inputs)


def by_mamba_ssm(scan: Callable[..., Tensor], x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """By ``selective_scan_fn(u, delta, A, B, C)``, which has the tokens last: [B, D, L] and [B, N, L]."""
    u, steps, into, out_of = (part.transpose(1, 2).contiguous() for part in (x, delta, b, c))
    return scan(u, steps, a, into, out_of).transpose(1, 2)


class _ByMamba(torch.autograd.Function):
    """mamba_ssm's scan and its gradient; a gradient that is to be differentiated again comes from the reference."""

    @staticmethod
    def forward(ctx: Any, scan: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        if not any(ctx.needs_input_grad):
            return by_mamba_ssm(scan, *inputs)
        with torch.enable_grad():
            ctx.leaves = [part.detach().requires_grad_() for part in inputs]
            ctx.out = by_mamba_ssm(scan, *ctx.leaves)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        if differentiated(grad):
            return None, *by_reference(reference, grad, Saved(ctx.saved_tensors, (), needed))
        return None, *torch.autograd.grad(ctx.out, ctx.leaves, grad, retain_graph=True)
