"""The compiled gradient of a convolution's weight: torch's numbers, the same bits on any number of threads."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from conftest import needs_compiler
from rounding import UNIT, assert_near_float64
from udit.ops import build, convolve, to_first, to_last
from udit.ops.convolution import OPERATOR, WEIGHTS
from udit.ops.convolution.cpu import NARROW


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
    assert_near_float64(OPERATOR, plainly, inputs, weights, longest)


@needs_compiler
def test_weights_gradient_of_many_pixels_is_summed_in_parts() -> None:
    """Terms of one sign: a chain's partial sums grow with each, and so does what a rounding of them takes away.

    A sum of positive terms is off by no more than 2 sqrt(n) roundings, n the additions that one term goes through: in
    parts of 512 pixels at most 512, and one for each part. A chain of all 65,536 pixels is off by three times that.
    """
    x, grad = torch.rand(16, 64, 64, NARROW), torch.rand(16, 64, 64, 1)
    found = WEIGHTS(x, grad)
    exact = torch.nn.grad.conv2d_weight(to_first(x.double()), (1, NARROW, 3, 3), to_first(grad.double()), padding=1)
    assert ((found - exact) / exact).abs().max() <= 2 * math.sqrt(512 + 16 * 64 * 64 / 512) * UNIT


@needs_compiler
def test_the_kernel_makes_the_weight_s_gradient_of_a_layer_that_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(build.CFunction, "__call__", lambda self, *_: called.append(self.name))
    layer = nn.Conv2d(NARROW, 8, 3, padding=1)
    x = torch.randn(2, 4, 4, NARROW)
    convolve(layer, x).sum().backward()
    assert called == ["weights"]
    with torch.no_grad():
        convolve(layer, x)
    x.requires_grad_()
    convolve(layer.requires_grad_(False), x).sum().backward()
    assert x.grad is not None
    assert called == ["weights"]


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
    monkeypatch.delattr(build.CFunction, "__call__")
    x = torch.randn(2, 8, 8, 32, requires_grad=True)
    out = convolve(layer, x)
    assert torch.equal(out, to_last(layer(to_first(x))))
    out.sum().backward()


@needs_compiler
def test_an_empty_batch_has_a_gradient_of_zero() -> None:
    layer = nn.Conv2d(NARROW, 8, 3, padding=1)
    convolve(layer, torch.randn(0, 8, 8, NARROW)).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_hooks_see_a_layer_that_is_watched() -> None:
    layer, x, seen = nn.Conv2d(16, 16, 3, padding=1), torch.randn(1, 4, 4, 16), []
    with layer.register_forward_hook(lambda *_: seen.append("its own")):
        convolve(layer, x)
    with register_module_forward_pre_hook(lambda *_: seen.append("all")):
        convolve(layer, x)
    assert seen == ["its own", "all"]
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(nn.Identity(), x).dtype == torch.float32


@needs_compiler
def test_work_is_counted_as_torch_s() -> None:
    layer, x = nn.Conv2d(16, 24, 3, padding=1), torch.randn(2, 6, 5, 16, requires_grad=True)
    counts = []
    for call in (lambda: convolve(layer, x), lambda: to_last(layer(to_first(x)))):
        with FlopCounterMode(display=False) as counter:
            call().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 60 * 9 * 16 * 24
