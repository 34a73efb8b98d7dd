"""Two Triton kernels, and their cases, to try `triton_check.py` on."""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl


@triton.jit
def depthwise(X, K, BIAS, OUT, H, W, D, SIDE: tl.constexpr, BW: tl.constexpr, BD: tl.constexpr):
    """A depthwise filter on a map [B, H, W, D]: one program a row of pixels by BD channels. K is [SIDE * SIDE, D]."""
    row = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    image, i = row // H, row % H
    reach: tl.constexpr = SIDE // 2
    for start in range(0, W, BW):
        j = start + tl.arange(0, BW)
        total = tl.zeros((BW, BD), tl.float32) + tl.load(BIAS + d, mask=inside, other=0.0)[None, :]
        for u in tl.static_range(SIDE):
            y = i + u - reach
            for v in tl.static_range(SIDE):
                x = j + v - reach
                there = (y >= 0) & (y < H) & (x >= 0) & (x < W)
                pixel = ((image * H + y) * W + x)[:, None].to(tl.int64)
                tap = tl.load(K + (u * SIDE + v) * D + d, mask=inside, other=0.0)[None, :]
                value = tl.load(X + pixel * D + d[None, :], mask=there[:, None] & inside[None, :], other=0.0)
                total += value.to(tl.float32) * tap
        pixel = ((image * H + i) * W + j)[:, None].to(tl.int64)
        tl.store(OUT + pixel * D + d[None, :], total.to(OUT.dtype.element_ty), mask=(j < W)[:, None] & inside[None, :])


@triton.jit
def product(A, B, OUT, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """OUT [M, N] = A [M, K] @ B [K, N]; one program a tile of BM by BN, K a multiple of BK."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        a = tl.load(A + m[:, None] * K + (start + k)[None, :], mask=m[:, None] < M, other=0.0)
        b = tl.load(B + (start + k)[:, None] * N + n[None, :], mask=n[None, :] < N, other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    out = OUT + m[:, None] * N + n[None, :]
    tl.store(out, total.to(OUT.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


def cases():
    """Small shapes: the interpreter takes a second for some ten thousand elements."""
    torch.manual_seed(0)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 1e-2)):
        x, k, bias = torch.randn(1, 8, 8, 40).to(dtype), torch.randn(40, 1, 5, 5), torch.randn(40)
        out = torch.empty_like(x)
        depthwise[(8, 1)](x, k.flatten(1).t().contiguous(), bias, out, 8, 8, 40, 5, 8, 64)
        wanted = F.conv2d(x.float().permute(0, 3, 1, 2), k, bias, padding=2, groups=40).permute(0, 2, 3, 1)
        yield f"depthwise {dtype}", out, wanted, tolerance
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float16, 2e-3)):  # bf16: see README, traps
        a, b = torch.randn(40, 32).to(dtype), torch.randn(32, 24).to(dtype)
        out = torch.empty(40, 24, dtype=dtype)
        product[(3, 2)](a, b, out, 40, 24, 32, 16, 16, 16)
        yield f"product {dtype}", out, a.double() @ b.double(), tolerance


def example_scaled(x: torch.Tensor) -> torch.Tensor:
    """A CUDA function of an operator: two launches, and a sum of torch's between them."""
    made, out = torch.empty_like(x), torch.empty_like(x)
    scaled[(1,)](x, made, x.numel(), BLOCK=1024)
    made.sum()
    scaled[(1,)](made, out, x.numel(), BLOCK=1024)
    return out


@triton.jit
def scaled(X, OUT, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + at, 2 * tl.load(X + at, mask=at < N, other=0.0), mask=at < N)
