"""Triton kernels of modulated norms; ``gpu.py`` launches them.

A program has rows of one sample, ROWS at a time, each whole: BD is a power of two not below the width D.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mean(x, width):
    """Of rows that are 0 beyond their width."""
    return tl.sum(x, 1) / width


@triton.jit
def norm(
    X,
    SHIFT,
    shift_stride,
    SCALE,
    scale_stride,
    OUT,
    MOMENTS,
    rows,
    width,
    blocks,
    eps,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    """The norm of ROWS rows, modulated; MOMENTS [.., 2] are their means and inverse deviations."""
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BD)
    inside = d < width
    there = (n < rows)[:, None] & inside[None, :]
    at = (sample * rows + n)[:, None] * width + d[None, :]
    x = tl.load(X + at, mask=there, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(SCALE + sample * scale_stride + d, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(SHIFT + sample * shift_stride + d, mask=inside, other=0.0).to(tl.float32)

    mean = _mean(x, width)
    centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
    deviation = tl.sqrt_rn(_mean(centred * centred, width) + eps)
    inverse = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), deviation)
    out = centred * inverse[:, None] * scale[None, :] + shift[None, :]
    tl.store(OUT + at, out.to(OUT.dtype.element_ty), mask=there)
    row = 2 * (sample * rows + n)
    tl.store(MOMENTS + row, mean, mask=n < rows)
    tl.store(MOMENTS + row + 1, inverse, mask=n < rows)


@triton.jit
def norm_backward(
    GRAD,
    X,
    SCALE,
    scale_stride,
    MOMENTS,
    OF_X,
    OF_SHIFT,
    OF_SCALE,
    rows,
    width,
    bands,
    steps,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    """Gradients of a band of ``steps`` times ROWS rows; OF_SHIFT and OF_SCALE [B, bands, D] are the band's sums."""
    sample = (tl.program_id(0) // bands).to(tl.int64)
    band = tl.program_id(0) % bands
    d = tl.arange(0, BD)
    inside = d < width
    scale = 1.0 + tl.load(SCALE + sample * scale_stride + d, mask=inside, other=0.0).to(tl.float32)
    of_shift = tl.zeros((ROWS, BD), tl.float32)
    of_scale = tl.zeros((ROWS, BD), tl.float32)
    for step in range(steps):
        n = (band * steps + step) * ROWS + tl.arange(0, ROWS)
        there = (n < rows)[:, None] & inside[None, :]
        at = (sample * rows + n)[:, None] * width + d[None, :]
        row = 2 * (sample * rows + n)
        mean = tl.load(MOMENTS + row, mask=n < rows, other=0.0)
        inverse = tl.load(MOMENTS + row + 1, mask=n < rows, other=0.0)
        grad = tl.load(GRAD + at, mask=there, other=0.0).to(tl.float32)
        x = tl.load(X + at, mask=there, other=0.0).to(tl.float32)
        normed = tl.where(inside[None, :], (x - mean[:, None]) * inverse[:, None], 0.0)
        of_shift += grad
        of_scale += grad * normed
        grad *= scale[None, :]
        along = _mean(grad * normed, width)
        of_x = (grad - _mean(grad, width)[:, None] - normed * along[:, None]) * inverse[:, None]
        tl.store(OF_X + at, of_x.to(OF_X.dtype.element_ty), mask=there)
    to = (sample * bands + band) * width + d
    tl.store(OF_SHIFT + to, tl.sum(of_shift, 0).to(OF_SHIFT.dtype.element_ty), mask=inside)
    tl.store(OF_SCALE + to, tl.sum(of_scale, 0).to(OF_SCALE.dtype.element_ty), mask=inside)
