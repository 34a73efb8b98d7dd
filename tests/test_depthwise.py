"""The compiled depthwise convolution: torch's numbers, the same bits on any number of threads, and doing without."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import udit
from conftest import TINY, batch, gradients, needs_compiler, perturb
from rounding import assert_near_float64
from udit import ops
from udit.ops import depthwise


def plain(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """torch's own, in the input's precision."""
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=kernel.shape[-1] // 2, groups=x.shape[-1]).permute(
        0, 2, 3, 1
    )


def plain_behind_gelu(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    return plain(F.gelu(x), kernel, bias)


def draw(shape: tuple[int, ...], side: int) -> tuple[Tensor, Tensor, Tensor]:
    width = shape[-1]
    return torch.randn(shape), torch.randn(width, 1, side, side), torch.randn(width)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize(
    "shape",
    [(1, 8, 8, 32), (2, 9, 7, 20), (3, 1, 1, 5), (1, 2, 19, 33), (2, 17, 16, 64), (1, 3, 40, 40)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("gelu", [False, True], ids=["", "gelu"])
def test_values_and_gradients_are_those_of_torch_in_float64(shape: tuple[int, ...], side: int, gelu: bool) -> None:
    """Every odd end: maps smaller than the kernel, partial tiles, bands and lines of channels."""
    filtered = plain_behind_gelu if gelu else plain
    longest = max(math.prod(shape[:-1]), side * side)
    assert_near_float64(
        functools.partial(depthwise, gelu=gelu), filtered, draw(shape, side), torch.randn(shape), longest
    )


@needs_compiler
def test_the_kernels_gelu_is_torchs_wherever_it_is_looked_at() -> None:
    """Within the rounding of one minus one: values, slopes, both ends, infinity, not a number."""
    points = torch.cat([torch.linspace(-12, 12, 24001), torch.tensor([0.0, -0.0, 1e-30, 3e38, -200.0])])
    x = torch.zeros(len(points), 32)
    x[:] = points[:, None]
    x = x.view(1, 1, len(points), 32).requires_grad_()
    kernel = torch.zeros(32, 1, 3, 3)
    kernel[:, :, 1, 1] = 1
    out = depthwise(x, kernel, torch.zeros(32), gelu=True)
    out.sum().backward()
    exact = points.double().requires_grad_()
    F.gelu(exact).sum().backward()
    close = 4e-7 * points.abs().clamp(1, 6)
    assert ((out[0, 0, :, 0] - F.gelu(exact)).abs() <= close.where(points.abs() < 6, 1e-6 * points.abs())).all()
    assert ((x.grad[0, 0, :, 0] - exact.grad).abs() <= 4e-7).all()
    odd = torch.full((1, 1, 1, 32), float("nan"))
    assert depthwise(odd, kernel, torch.zeros(32), gelu=True).isnan().all()
    assert depthwise(-odd.fill_(-torch.inf), kernel, torch.zeros(32), gelu=True).isposinf().all()


def test_bfloat16_rounds_once() -> None:
    x, kernel, bias = draw((2, 9, 8, 24), 5)
    x = x.bfloat16()
    exact = plain(x.double(), kernel.double(), bias.double())
    out = depthwise(x, kernel, bias)
    assert out.dtype == torch.bfloat16
    assert ((out - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    grads = gradients(depthwise, x, kernel, bias, weights=torch.ones(x.shape))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    truth = gradients(plain, x.double(), kernel.double(), bias.double(), weights=torch.ones(x.shape))
    for mine, true in zip(grads, truth, strict=True):
        assert (mine - true).abs().max() <= 2**-8 * true.abs().max()


@needs_compiler
def test_not_a_number_and_infinity_stay_what_they_are_in_bfloat16() -> None:
    x = torch.zeros(1, 1, 3, 4)
    x[0, 0, 0, 0], x[0, 0, 0, 1], x[0, 0, 0, 2] = float("nan"), float("inf"), 3.4e38
    kernel = torch.zeros(4, 1, 3, 3)
    kernel[:, :, 1, 1] = 1
    out = depthwise(x.bfloat16(), kernel, torch.zeros(4))[0, 0, 0]
    assert out[0].isnan()
    assert out[1:].tolist() == [float("inf"), float(torch.tensor(3.4e38).bfloat16()), 0.0]


def test_views_of_any_layout_are_taken() -> None:
    _, kernel, bias = draw((1, 1, 1, 16), 5)
    x = torch.randn(2, 16, 8, 6)
    torch.testing.assert_close(
        depthwise(x.permute(0, 2, 3, 1), kernel, bias), plain(x.permute(0, 2, 3, 1), kernel, bias), atol=1e-5, rtol=1e-5
    )


def test_operations_are_counted_with_the_kernel_and_without() -> None:
    """Backwards only the kernel's: torch counts its own gradient as if every channel met every other."""
    forward = 2 * 25 * 2 * 8 * 8 * 32
    for device in ("cpu", "meta"):
        inputs = [tensor.to(device).requires_grad_() for tensor in draw((2, 8, 8, 32), 5)]
        with FlopCounterMode(display=False) as counter:
            out = depthwise(*inputs)
            assert counter.get_total_flops() == forward
            out.sum().backward()
        if device == "cpu" and ops.OPERATORS["depthwise"].usable("cpu", "all"):
            assert counter.get_total_flops() == 3 * forward


def test_a_network_gives_the_same_without_kernels() -> None:
    model = perturb(udit.build("U-DiT-S", **TINY)).eval()
    outs = [model(*batch(model))]
    with ops.kernels("off"):
        outs.append(model(*batch(model)))
    torch.testing.assert_close(*outs, atol=1e-5, rtol=1e-5)


def test_gradients_reach_only_what_asks_for_them() -> None:
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8).requires_grad_(False)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    assert layer.bias is not None
    depthwise(x, layer.weight, layer.bias).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
