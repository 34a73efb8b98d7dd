"""Triton kernels of gated sums; ``gpu.py`` launches them.

A program has BD channels of one sample's rows, ROWS at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gate(
    X, GATE, gate_stride, Y, OUT, rows, width, blocks, groups, ROWS: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """X + GATE * Y of one block."""
    block = tl.program_id(0) // groups
    sample = (block // blocks).to(tl.int64)
    n = block % blocks * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(0) % groups * BD + tl.arange(0, BD)
    there = (n < rows)[:, None] & (d < width)[None, :]
    at = (sample * rows + n)[:, None] * width + d[None, :]
    gate = tl.load(GATE + sample * gate_stride + d, mask=d < width, other=0.0).to(tl.float32)
    x = tl.load(X + at, mask=there, other=0.0).to(tl.float32)
    y = tl.load(Y + at, mask=there, other=0.0).to(tl.float32)
    tl.store(OUT + at, (x + gate[None, :] * y).to(OUT.dtype.element_ty), mask=there)


@triton.jit
def gate_backward(
    GRAD,
    GATE,
    gate_stride,
    Y,
    OF_Y,
    OF_GATE,
    rows,
    width,
    bands,
    steps,
    groups,
    ROWS: tl.constexpr,
    BD: tl.constexpr,
):
    """Gradients of a band of ``steps`` times ROWS rows; OF_GATE [B, bands, D] is the band's sum."""
    number = tl.program_id(0) // groups
    sample = (number // bands).to(tl.int64)
    band = number % bands
    d = tl.program_id(0) % groups * BD + tl.arange(0, BD)
    inside = d < width
    gate = tl.load(GATE + sample * gate_stride + d, mask=inside, other=0.0).to(tl.float32)
    of_gate = tl.zeros((ROWS, BD), tl.float32)
    for step in range(steps):
        n = (band * steps + step) * ROWS + tl.arange(0, ROWS)
        there = (n < rows)[:, None] & inside[None, :]
        at = (sample * rows + n)[:, None] * width + d[None, :]
        grad = tl.load(GRAD + at, mask=there, other=0.0).to(tl.float32)
        of_gate += grad * tl.load(Y + at, mask=there, other=0.0).to(tl.float32)
        tl.store(OF_Y + at, (grad * gate[None, :]).to(OF_Y.dtype.element_ty), mask=there)
    to = (sample * bands + band) * width + d
    tl.store(OF_GATE + to, tl.sum(of_gate, 0).to(OF_GATE.dtype.element_ty), mask=inside)
