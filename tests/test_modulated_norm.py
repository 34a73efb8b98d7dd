"""Modulated norms and gated sums in one pass: the numbers of torch's operators, forwards and backwards."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import needs_compiler
from rounding import assert_near_float64
from udit import ops

pytestmark = needs_compiler

SHAPES = [(2, 8, 8, 32), (1, 9, 9, 12), (3, 1, 1, 1), (2, 5, 40), (2, 130, 7)]


def norm_by_torch(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


PAIRS = [(ops.modulated_norm, norm_by_torch), (ops.gated_sum, torch.addcmul)]


def given(shape: tuple[int, ...], function: object) -> list[Tensor]:
    """A map with a mean far from zero, and what modulates or joins it."""
    x, row = torch.randn(shape) * 3 + 5, (shape[0], *[1] * (len(shape) - 2), shape[-1])
    return [x, torch.randn(row), torch.randn(row if function is ops.modulated_norm else shape)]


def outcome(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    out = function(*tensors)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [out.detach(), *(x.grad for x in tensors)]


@pytest.mark.parametrize(("function", "by_torch"), PAIRS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], function: Callable[..., Tensor], by_torch: Callable[..., Tensor]
) -> None:
    tensors = given(shape, function)
    assert_near_float64(function, by_torch, tensors, torch.randn(shape), max(shape[-1], math.prod(shape[1:-1])))


@pytest.mark.parametrize("function", [pair[0] for pair in PAIRS])
def test_bfloat16_maps_are_computed_in_float32(function: Callable[..., Tensor]) -> None:
    tensors = [x.bfloat16() for x in given((2, 8, 8, 24), function)]
    out = function(*tensors)
    assert torch.equal(out, function(*(x.float() for x in tensors)).bfloat16())


@pytest.mark.parametrize("function", [pair[0] for pair in PAIRS])
def test_not_a_number_reaches_the_output(function: Callable[..., Tensor]) -> None:
    tensors = given((1, 2, 2, 16), function)
    tensors[0][0, 1, 1, 3] = torch.nan
    out = function(*tensors)
    assert out[0, 1, 1].isnan().any()
    assert out[0, 0].isfinite().all()
