"""Triton kernels of attention within sub-grids; ``gpu.py`` launches them.

A program has one head of one sub-grid, whose tokens lie f pixels apart in the map and are read and written there. A
row of a head, R channels, fills a block's BR columns, a power of two; BM queries meet BN keys at a time. Products are
of the map's element type and sum in float32. Logits have base 2 inside a kernel, natural ones in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LEAST_NORM = tl.constexpr(1e-12)  # of torch's normalize


@triton.jit
def _place(number, width, heads, factor):
    """Of a head of a sub-grid: its image, its head, and the number of its first pixel."""
    grid = number // heads
    part = grid % (factor * factor)
    return (grid // (factor * factor)).to(tl.int64), number % heads, part // factor * width + part % factor


@triton.jit
def _pixels(n, first, width, factor):
    """Numbers of the tokens' pixels within an image."""
    columns = width // factor
    return first + n // columns * factor * width + n % columns * factor


@triton.jit
def _read(ROWS, at, n, tokens, stride, R: tl.constexpr, BR: tl.constexpr):
    """R channels of the rows ``at``, which are tokens n; zeros beyond."""
    r = tl.arange(0, BR)
    there = (n < tokens)[:, None] & (r < R)[None, :]
    return tl.load(ROWS + at[:, None] * stride + r[None, :], mask=there, other=0.0)


@triton.jit
def _write(ROWS, value, at, n, tokens, stride, R: tl.constexpr, BR: tl.constexpr):
    r = tl.arange(0, BR)
    there = (n < tokens)[:, None] & (r < R)[None, :]
    tl.store(ROWS + at[:, None] * stride + r[None, :], value.to(ROWS.dtype.element_ty), mask=there)


@triton.jit
def _swapped(x, COUNT: tl.constexpr, BR: tl.constexpr):
    """The channels of every pair exchanged."""
    even, odd = tl.split(tl.reshape(x, (COUNT, BR // 2, 2)))
    return tl.reshape(tl.join(odd, even), (COUNT, BR))


@triton.jit
def _turned(x, ROPE, n, tokens, BACK: tl.constexpr, COUNT: tl.constexpr, R: tl.constexpr, BR: tl.constexpr):
    """``ops.attention.rotate``, or with BACK its transpose."""
    cosine = _read(ROPE, n, n, tokens, R, R, BR)
    sine = _read(ROPE + tokens * R, n, n, tokens, R, R, BR)
    if BACK:
        return x * cosine + _swapped(x * sine, COUNT, BR)
    return x * cosine + _swapped(x, COUNT, BR) * sine


@triton.jit
def _prepared(x, ROPE, n, tokens, COSINE: tl.constexpr, COUNT: tl.constexpr, R: tl.constexpr, BR: tl.constexpr):
    """Queries or keys, turned and with COSINE of unit norm, in float32; and what they were multiplied by for that."""
    x = x.to(tl.float32)
    inverse = tl.full((COUNT,), 1.0, tl.float32)
    if ROPE is not None:
        x = _turned(x, ROPE, n, tokens, False, COUNT, R, BR)
    if COSINE:
        inverse = tl.div_rn(inverse, tl.maximum(tl.sqrt_rn(tl.sum(x * x, 1)), LEAST_NORM))
        x *= inverse[:, None]
    return x, inverse


@triton.jit
def _undone(
    grad, x, inverse, ROPE, n, tokens, COSINE: tl.constexpr, COUNT: tl.constexpr, R: tl.constexpr, BR: tl.constexpr
):
    """The gradient of what ``_prepared`` turned into x."""
    if COSINE:
        along = tl.where(
            inverse * LEAST_NORM < 1.0, tl.sum(grad * x, 1), 0.0
        )  # rows of zeros are divided by a constant
        grad = (grad - along[:, None] * x) * inverse[:, None]
    if ROPE is not None:
        grad = _turned(grad, ROPE, n, tokens, True, COUNT, R, BR)
    return grad


@triton.jit
def _logits(q, k, n, tokens, product_scale, PRECISION: tl.constexpr):
    """Of queries and keys, to base 2; none of keys beyond the last."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (product_scale * LOG2E)
    return tl.where((n < tokens)[None, :], logits, float("-inf"))


@triton.jit
def forward(
    QKV,
    SCALE,
    ROPE,
    OUT,
    LOGS,
    pixels,
    width,
    tokens,
    heads,
    factor,
    blocks,
    product_scale,
    R: tl.constexpr,
    BR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``grid_attention`` for one block of queries."""
    COSINE: tl.constexpr = SCALE is not None
    element = QKV.dtype.element_ty
    number, channels = tl.program_id(0) // blocks, heads * R
    image, head, first = _place(number, width, heads, factor)
    QKV += image * pixels * 3 * channels + head * R
    OUT += image * pixels * channels + head * R

    m = tl.program_id(0) % blocks * BM + tl.arange(0, BM)
    at = _pixels(m, first, width, factor)
    q, _ = _prepared(_read(QKV, at, m, tokens, 3 * channels, R, BR), ROPE, m, tokens, COSINE, BM, R, BR)
    if COSINE:
        q *= tl.load(SCALE + head)
    q = q.to(element)

    most = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    out = tl.zeros((BM, BR), tl.float32)
    for start in range(0, tokens, BN):
        n = start + tl.arange(0, BN)
        there = _pixels(n, first, width, factor)
        k, _ = _prepared(
            _read(QKV + channels, there, n, tokens, 3 * channels, R, BR), ROPE, n, tokens, COSINE, BN, R, BR
        )
        v = _read(QKV + 2 * channels, there, n, tokens, 3 * channels, R, BR)
        logits = _logits(q, k.to(element), n, tokens, product_scale, PRECISION)
        higher = tl.maximum(most, tl.max(logits, 1))
        shares = tl.exp2(logits - higher[:, None])
        faded = tl.exp2(most - higher)
        total = total * faded + tl.sum(shares, 1)
        out = tl.dot(shares.to(element), v, out * faded[:, None], input_precision=PRECISION)
        most = higher

    _write(OUT, out / total[:, None], at, m, tokens, channels, R, BR)
    tl.store(LOGS + number.to(tl.int64) * tokens + m, (most + tl.log2(total)) / LOG2E, mask=m < tokens)


@triton.jit
def backward(
    GRAD,
    QKV,
    SCALE,
    ROPE,
    OUT,
    LOGS,
    OF_QKV,
    OF_SCALE,
    pixels,
    width,
    tokens,
    heads,
    factor,
    product_scale,
    R: tl.constexpr,
    BR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``grid_attention_backward``: all keys and values of a head, then all its queries."""
    COSINE: tl.constexpr = SCALE is not None
    element = QKV.dtype.element_ty
    number, channels = tl.program_id(0), heads * R
    image, head, first = _place(number, width, heads, factor)
    GRAD += image * pixels * channels + head * R
    OUT += image * pixels * channels + head * R
    QKV += image * pixels * 3 * channels + head * R
    OF_QKV += image * pixels * 3 * channels + head * R
    LOGS += number.to(tl.int64) * tokens
    scale = 1.0
    if COSINE:
        scale = tl.load(SCALE + head)

    for key_start in range(0, tokens, BN):
        n = key_start + tl.arange(0, BN)
        there = _pixels(n, first, width, factor)
        k, inverse = _prepared(
            _read(QKV + channels, there, n, tokens, 3 * channels, R, BR), ROPE, n, tokens, COSINE, BN, R, BR
        )
        v = _read(QKV + 2 * channels, there, n, tokens, 3 * channels, R, BR)
        of_k = tl.zeros((BN, BR), tl.float32)
        of_v = tl.zeros((BN, BR), tl.float32)
        for start in range(0, tokens, BM):
            m = start + tl.arange(0, BM)
            at = _pixels(m, first, width, factor)
            q, _ = _prepared(_read(QKV, at, m, tokens, 3 * channels, R, BR), ROPE, m, tokens, COSINE, BM, R, BR)
            q = (q * scale).to(element)
            grad = _read(GRAD, at, m, tokens, channels, R, BR)
            out = _read(OUT, at, m, tokens, channels, R, BR)
            mean = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
            logs = tl.load(LOGS + m, mask=m < tokens, other=float("inf")) * LOG2E  # no share of queries beyond the last
            shares = tl.exp2(_logits(q, k.to(element), n, tokens, product_scale, PRECISION) - logs[:, None])
            of_v = tl.dot(tl.trans(shares.to(element)), grad, of_v, input_precision=PRECISION)
            of_shares = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
            of_logits = (shares * (of_shares - mean[:, None])).to(element)
            of_k = tl.dot(tl.trans(of_logits), q, of_k, input_precision=PRECISION)
        of_k = _undone(of_k * product_scale, k, inverse, ROPE, n, tokens, COSINE, BN, R, BR)
        _write(OF_QKV + channels, of_k, there, n, tokens, 3 * channels, R, BR)
        _write(OF_QKV + 2 * channels, of_v, there, n, tokens, 3 * channels, R, BR)

    of_scale = tl.zeros((BM,), tl.float32)
    for start in range(0, tokens, BM):
        m = start + tl.arange(0, BM)
        at = _pixels(m, first, width, factor)
        unscaled, inverse = _prepared(
            _read(QKV, at, m, tokens, 3 * channels, R, BR), ROPE, m, tokens, COSINE, BM, R, BR
        )
        q = (unscaled * scale).to(element)
        grad = _read(GRAD, at, m, tokens, channels, R, BR)
        out = _read(OUT, at, m, tokens, channels, R, BR)
        mean = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
        logs = tl.load(LOGS + m, mask=m < tokens, other=float("inf")) * LOG2E
        of_q = tl.zeros((BM, BR), tl.float32)
        excess = tl.zeros((BM,), tl.float32)
        likeness = tl.zeros((BM,), tl.float32)
        for key_start in range(0, tokens, BN):
            n = key_start + tl.arange(0, BN)
            there = _pixels(n, first, width, factor)
            k, _ = _prepared(
                _read(QKV + channels, there, n, tokens, 3 * channels, R, BR), ROPE, n, tokens, COSINE, BN, R, BR
            )
            k = k.to(element)
            v = _read(QKV + 2 * channels, there, n, tokens, 3 * channels, R, BR)
            logits = _logits(q, k, n, tokens, product_scale, PRECISION)
            shares = tl.exp2(logits - logs[:, None])
            of_logits = shares * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - mean[:, None])
            if COSINE:
                excess += tl.sum(of_logits, 1)
                likeness += tl.sum(shares * tl.where(shares > 0, logits, 0.0), 1)
            of_q = tl.dot(of_logits.to(element), k, of_q, input_precision=PRECISION)
        of_q *= product_scale
        if COSINE:
            # The logits' gradients of a row sum to 0, but for the rounding of the output that ``mean`` comes from.
            of_scale += tl.sum(of_q * unscaled, 1) - excess * likeness / (LOG2E * scale)
        of_q = _undone(of_q * scale, unscaled, inverse, ROPE, m, tokens, COSINE, BM, R, BR)
        _write(OF_QKV, of_q, at, m, tokens, 3 * channels, R, BR)
    if COSINE:
        tl.store(OF_SCALE + number, tl.sum(of_scale, 0))
