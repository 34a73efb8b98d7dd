"""The compiled gradient of a convolution's weight: torch's numbers, the same bits on any number of threads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from conftest import gradients, needs_compiler
from rounding import UNIT, assert_near_float64
from udit.nn import native
from udit.nn.convolution import NARROW, convolved
from udit.nn.tokens import to_first, to_last


def plainly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return to_last(torch.conv2d(to_first(x), weight, bias, padding=1))


def draw(size: tuple[int, int, int], inner: int, outer: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(*size, inner), torch.randn(outer, inner, 3, 3), torch.randn(outer)


@needs_compiler
@pytest.mark.parametrize(
    ("size", "inner", "outer"),
    [
        ((1, 1, 1), 16, 1),
        ((3, 7, 9), 20, 13),
        ((2, 33, 32), 16, 2),
        ((1, 2, 600), 17, 7),
        ((21, 5, 5), 40, 12),
        ((2, 24, 31), 33, 64),
    ],
    ids=str,
)
def test_gradients_are_those_of_torch_in_float64(size: tuple[int, int, int], inner: int, outer: int) -> None:
    """Every odd end: chunks of rows and of maps, panels and tiles that are not full."""
    inputs, weights = draw(size, inner, outer), torch.randn(*size, outer)
    longest = max(math.prod(size), 9 * max(inner, outer))
    assert_near_float64(torch.ops.udit.convolution, plainly, inputs, weights, longest)


@needs_compiler
@pytest.mark.xfail(reason="the kernel sums all pixels in one chain", strict=True)
def test_weights_gradient_of_many_pixels_is_summed_in_parts() -> None:
    """Terms of one sign: a chain's partial sums grow with each, and so does what a rounding of them takes away.

    A sum of positive terms is off by no more than 2 sqrt(n) roundings, n the additions that one term goes through: in
    parts of 512 pixels at most 512, and one for each part. A chain of all 65,536 pixels is off by three times that.
    """
    x, grad = torch.rand(16, 64, 64, NARROW), torch.rand(16, 64, 64, 1)
    found = torch.ops.udit.convolution_weights(x, grad)
    exact = torch.nn.grad.conv2d_weight(to_first(x.double()), (1, NARROW, 3, 3), to_first(grad.double()), padding=1)
    assert ((found - exact) / exact).abs().max() <= 2 * math.sqrt(512 + 16 * 64 * 64 / 512) * UNIT


@needs_compiler
def test_the_kernel_makes_the_weight_s_gradient_of_a_layer_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(native, "call", lambda name, *_: called.append(name))
    layer = nn.Conv2d(NARROW, 8, 3, padding=1)
    x = torch.randn(2, 4, 4, NARROW)
    convolved(x, layer).sum().backward()
    assert called == ["convolution"]
    with torch.no_grad():
        convolved(x, layer)
    x.requires_grad_()
    convolved(x, layer.requires_grad_(False)).sum().backward()
    assert x.grad is not None
    assert called == ["convolution"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(32, 8, 3),
        nn.Identity(),
    ],
    ids=str,
)
def test_any_other_layer_is_called(layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(native, "call")
    x = torch.randn(2, 8, 8, 32, requires_grad=True)
    out = convolved(x, layer)
    assert torch.equal(out, to_last(layer(to_first(x))))
    out.sum().backward()


@needs_compiler
def test_no_pictures_have_a_gradient_of_zero() -> None:
    layer = nn.Conv2d(NARROW, 8, 3, padding=1)
    convolved(torch.randn(0, 8, 8, NARROW), layer).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_hooks_see_a_layer_that_is_watched() -> None:
    layer, x, seen = nn.Conv2d(16, 16, 3, padding=1), torch.randn(1, 4, 4, 16), []
    with layer.register_forward_hook(lambda *_: seen.append("its own")):
        convolved(x, layer)
    with register_module_forward_pre_hook(lambda *_: seen.append("all")):
        convolved(x, layer)
    assert seen == ["its own", "all"]
    with torch.autocast("cpu", torch.bfloat16):
        assert convolved(x, nn.Identity()).dtype == torch.float32


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits() -> None:
    inputs, weights = draw((5, 20, 20), 50, 30), torch.randn(5, 20, 20, 30)
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(gradients(torch.ops.udit.convolution, *inputs, weights=weights)[2])
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_compiler
def test_work_is_counted_as_torch_s() -> None:
    layer, x = nn.Conv2d(16, 24, 3, padding=1), torch.randn(2, 6, 5, 16, requires_grad=True)
    counts = []
    for call in (lambda: convolved(x, layer), lambda: to_last(layer(to_first(x)))):
        with FlopCounterMode(display=False) as counter:
            call().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 60 * 9 * 16 * 24
