"""Triton kernels of depthwise convolutions; ``gpu.py`` launches them.

A program walks down the rows of LANES strips of a map, each BW columns of one image, with BD channels. A row's pixels
are read once, and once more where strips adjoin; their GELU is computed then, not at every tap. What a row adds to the
SIDE output rows around it stays in registers, in tuples of [LANES, BD], until the row that completes an output.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_slope(x):
    density = tl.exp(-0.5 * x * x) * 0.3989422804014327
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density


@triton.jit
def _strips(number, strips, width, BW: tl.constexpr, LANES: tl.constexpr):
    """Image and first column of each lane's strip, [LANES, 1], and whether there is one."""
    across = (width + BW - 1) // BW
    strip = (number * LANES + tl.arange(0, LANES))[:, None]
    return (strip // across).to(tl.int64), strip % across * BW, strip < strips


@triton.jit
def _pixel(MAP, y, x, height, width, channels, there):
    """Pixel (y, x) of each lane, 0 beyond the map, in float32; MAP points to each lane's image and channels."""
    there = there & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return tl.load(MAP + (y * width + x) * channels, mask=there, other=0.0).to(tl.float32)


@triton.jit
def convolve(
    X,
    KERNEL,
    BIAS,
    SLOPES,
    OUT,
    strips,
    height,
    width,
    channels,
    groups,
    TURNED: tl.constexpr,
    GELU: tl.constexpr,
    SIDE: tl.constexpr,
    BW: tl.constexpr,
    LANES: tl.constexpr,
    BD: tl.constexpr,
):
    """The convolution of X or its GELU, with TURNED by the kernel rotated by 180 degrees; times GELU's slope at SLOPES.

    Groups of BD channels come first, so that programs of the same pixels run together.
    """
    REACH: tl.constexpr = SIDE // 2
    d = (tl.program_id(0) % groups * BD + tl.arange(0, BD))[None, :]
    image, left, there = _strips(tl.program_id(0) // groups, strips, width, BW, LANES)
    there = there & (d < channels)
    shift = image * height * width * channels + d

    taps = ()
    for tap in tl.static_range(SIDE * SIDE):
        place = SIDE * SIDE - 1 - tap if TURNED else tap
        taps = taps + (tl.load(KERNEL + d * SIDE * SIDE + place, mask=d < channels, other=0.0),)
    start = tl.zeros((LANES, BD), tl.float32)
    if BIAS is not None:
        start += tl.load(BIAS + d, mask=d < channels, other=0.0)

    sums = ()
    for _ in tl.static_range(SIDE * BW):
        sums = sums + (start,)
    for y in range(height + REACH):
        values = ()
        for j in tl.static_range(BW + 2 * REACH):
            value = _pixel(X + shift, y, left + j - REACH, height, width, channels, there)
            values = values + (_gelu(value) if GELU else value,)
        added = ()
        for k in tl.static_range(SIDE):  # output row y - REACH + k
            for j in tl.static_range(BW):
                total = sums[k * BW + j]
                for v in tl.static_range(SIDE):
                    total += values[j + v] * taps[(SIDE - 1 - k) * SIDE + v]
                added = added + (total,)
        done = y - REACH
        for j in tl.static_range(BW):
            at = shift + (done * width + left + j) * channels
            written = there & (done >= 0) & (left + j < width)
            total = added[j]
            if SLOPES is not None:
                total *= _gelu_slope(tl.load(SLOPES + at, mask=written, other=0.0).to(tl.float32))
            tl.store(OUT + at, total.to(OUT.dtype.element_ty), mask=written)
        sums = ()
        for i in tl.static_range(SIDE * BW):
            sums = sums + (added[i + BW] if i + BW < SIDE * BW else start,)


@triton.jit
def of_weights(
    X,
    GRAD,
    PARTS,
    strips,
    height,
    width,
    channels,
    groups,
    rounds,
    GELU: tl.constexpr,
    SIDE: tl.constexpr,
    BW: tl.constexpr,
    LANES: tl.constexpr,
    BD: tl.constexpr,
):
    """Sums over a program's strips of what each tap's gradient and, last, the bias's consist of.

    PARTS is [programs / groups, SIDE * SIDE + 1, channels].
    """
    REACH: tl.constexpr = SIDE // 2
    d = (tl.program_id(0) % groups * BD + tl.arange(0, BD))[None, :]
    part = tl.program_id(0) // groups
    zero = tl.zeros((LANES, BD), tl.float32)
    sums = ()
    for _ in tl.static_range(SIDE * SIDE + 1):
        sums = sums + (zero,)
    for step in range(rounds):
        image, left, there = _strips(part * rounds + step, strips, width, BW, LANES)
        there = there & (d < channels)
        shift = image * height * width * channels + d
        grads = ()
        for _ in tl.static_range(SIDE * BW):  # rows y - REACH to y + REACH, filled from below
            grads = grads + (zero,)
        for y in range(-REACH, height):
            after = ()
            for i in tl.static_range((SIDE - 1) * BW):
                after = after + (grads[i + BW],)
            for j in tl.static_range(BW):
                after = after + (_pixel(GRAD + shift, y + REACH, left + j, height, width, channels, there),)
            grads = after
            values = ()
            for j in tl.static_range(BW + 2 * REACH):
                value = _pixel(X + shift, y, left + j - REACH, height, width, channels, there)
                values = values + (_gelu(value) if GELU else value,)
            added = ()
            for u in tl.static_range(SIDE):
                for v in tl.static_range(SIDE):
                    row = values[v] * grads[(SIDE - 1 - u) * BW]
                    for j in tl.static_range(1, BW):
                        row += values[j + v] * grads[(SIDE - 1 - u) * BW + j]
                    added = added + (sums[u * SIDE + v] + row,)  # a sum of sums loses fewer bits
            row = grads[(SIDE - 1) * BW]
            for j in tl.static_range(1, BW):
                row += grads[(SIDE - 1) * BW + j]
            sums = added + (sums[SIDE * SIDE] + row,)
    for tap in tl.static_range(SIDE * SIDE + 1):
        at = PARTS + (part * (SIDE * SIDE + 1) + tap) * channels + d
        tl.store(at, tl.sum(sums[tap], 0, keep_dims=True), mask=d < channels)


@triton.jit
def total(PARTS, KERNEL, BIAS, parts, channels, SIDE: tl.constexpr, BD: tl.constexpr):
    """Gradients of one tap or the bias: the sum of their parts in order."""
    tap = tl.program_id(0) % (SIDE * SIDE + 1)
    d = tl.program_id(0) // (SIDE * SIDE + 1) * BD + tl.arange(0, BD)
    inside = d < channels
    result = tl.zeros((BD,), tl.float32)
    for part in range(parts):
        result += tl.load(PARTS + (part * (SIDE * SIDE + 1) + tap) * channels + d, mask=inside, other=0.0)
    tl.store(KERNEL + d * SIDE * SIDE + tap, result, mask=inside & (tap < SIDE * SIDE))
    tl.store(BIAS + d, result, mask=inside & (tap == SIDE * SIDE))
