"""Attention within sub-grids by one kernel: the numbers of torch's operators, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from conftest import needs_compiler
from rounding import assert_near_float64
from udit.nn.tokens import rotary_table
from udit.ops.attention import OPERATOR, join_grids, rotate, split_grids
from udit.ops.attention import reference as by_torch

pytestmark = needs_compiler

SHAPES = [
    ((2, 8, 12), 2, 16, 2),  # tokens that fill no tile
    ((1, 6, 3), 3, 4, 3),
    ((2, 4, 4), 1, 12, 1),
    ((1, 16, 16), 4, 24, 2),
    ((1, 2, 2), 2, 8, 2),  # one token per sub-grid
    ((1, 17, 19), 2, 20, 1),  # no whole number of tiles or vectors
]
LARGE = (1, 36, 36), 1, 8, 1  # more tokens than a piece of the matrix has
VARIANTS = [(*shape, rope, cosine) for shape in SHAPES for rope in (True, False) for cosine in (True, False)]
VARIANTS += [(*LARGE, False, True), (*LARGE, True, False)]  # rotation and scale are applied before there are pieces


def by_formula(qkv: Tensor, scale: Tensor | None, table: Tensor | None, heads: int, factor: int) -> Tensor:
    """Attention by single operations, each of which rounds."""
    q, k, v = split_grids(qkv, factor, 3, heads)
    if table is not None:
        q, k = rotate(q, table), rotate(k, table)
    if scale is None:
        logits = q @ k.mT / q.shape[-1] ** 0.5
    else:
        q, k = (x / (x * x).sum(-1, keepdim=True).sqrt() for x in (q, k))
        logits = (scale.view(-1, 1, 1) * q) @ k.mT
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return join_grids(weights / weights.sum(-1, keepdim=True) @ v, factor, *qkv.shape[1:3])


def outcome(
    function: object, qkv: Tensor, scale: Tensor | None, *rest: object, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Output and gradients."""
    given = [None if x is None else x.to(dtype).detach().clone().requires_grad_() for x in (qkv, scale)]
    out = function(*given, *rest)  # type: ignore[operator]
    (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)).sum().backward()
    return [out.detach(), *(x.grad for x in given if x is not None)]


def check(qkv: Tensor, scale: Tensor | None, table: Tensor | None, heads: int, factor: int) -> None:
    """Float64's output and gradients, to float32's rounding."""
    weights = torch.randn(*qkv.shape[:-1], qkv.shape[-1] // 3)
    inputs = [qkv] if scale is None else [qkv, scale]

    def given(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda qkv, scale=None: function(qkv, scale, table, heads, factor)

    # the longest sum is a scale's gradient, over all tokens of a batch
    longest = max(weights.shape[-1] // heads, weights.shape[:-1].numel())
    assert_near_float64(given(OPERATOR), given(by_formula), inputs, weights, longest)


@pytest.mark.parametrize(("shape", "heads", "channels", "factor", "rope", "cosine"), VARIANTS)
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, int, int], heads: int, channels: int, factor: int, rope: bool, cosine: bool
) -> None:
    qkv, scale = torch.randn(*shape, 3 * heads * channels), torch.linspace(1, 90, heads) if cosine else None
    table = rotary_table(shape[1] // factor, shape[2] // factor, channels) if rope else None
    check(qkv, scale, table, heads, factor)


@pytest.mark.parametrize("channels", [1, 5, 17])
def test_heads_of_odd_width_are_those_of_torch(channels: int) -> None:
    check(torch.randn(1, 6, 10, 3 * 2 * channels), torch.tensor([1.0, 20.0]), None, 2, 2)


@pytest.mark.parametrize("aligned", [1.0, -1.0])
def test_scales_from_cold_to_the_bound_underflow_nothing(aligned: float) -> None:
    """All logits near the bound, or all near minus the bound: what the largest is does not matter to weights.

    40 is near the most that does without the largest.
    """
    for _ in range(2):
        q = torch.nn.functional.normalize(torch.randn(8), dim=0)
        qkv = torch.randn(1, 20, 15, 3, 3, 8)
        qkv[..., 0, :, :] = q + 0.1 * torch.randn(1, 20, 15, 3, 8)
        qkv[..., 1, :, :] = aligned * (q + 0.1 * torch.randn(1, 20, 15, 3, 8))
        check(qkv.flatten(3), torch.tensor([1e-3, 40.0, 100.0]), None, 3, 1)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-18, 1e18])
def test_rows_of_any_length_stay_finite(size: float) -> None:
    """Squares below and above float32's range included."""
    qkv = torch.randn(1, 4, 4, 3 * 16)
    qkv[..., :32] *= size
    table = rotary_table(2, 2, 8)
    out, grad, _ = outcome(OPERATOR, qkv, torch.ones(2), table, 2, 2)
    torch.testing.assert_close(out, outcome(by_torch, qkv, torch.ones(2), table, 2, 2, dtype=torch.float64)[0].float())
    assert grad.isfinite().all()


def test_sharp_attention_finds_its_token() -> None:
    """Logits far below the largest add nothing, and far from zero overflow nothing."""
    qkv = torch.randn(1, 8, 8, 3 * 8) * 40
    exact = outcome(by_torch, qkv, None, None, 1, 2, dtype=torch.float64)
    for ours, true in zip(outcome(OPERATOR, qkv, None, None, 1, 2), exact, strict=True):
        assert (ours - true).abs().max() <= 1e-3 * true.abs().max()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, -0x00400000])
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("part", range(3))
def test_not_a_number_reaches_output_and_gradient_of_its_sub_grid_alone(part: int, cosine: bool, bits: int) -> None:
    """Whatever its sign and payload."""
    qkv = torch.randn(1, 4, 4, 3 * 8)
    qkv[0, 0, 0, 8 * part] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    out, grad = outcome(OPERATOR, qkv, torch.ones(1) if cosine else None, None, 1, 2)[:2]
    for x in (out, grad):
        assert x[0, 0, 0].isnan().any()
        assert x[0, 1].isfinite().all()
        assert x[0, :, 1].isfinite().all()


def test_bfloat16_is_computed_in_float32() -> None:
    qkv = torch.randn(2, 4, 4, 3 * 16).bfloat16()
    rest = torch.full((2,), 4.0), rotary_table(2, 2, 8), 2, 2
    assert torch.equal(OPERATOR(qkv, *rest), OPERATOR(qkv.float(), *rest).bfloat16())


def test_memory_kept_for_backward_is_linear_in_tokens() -> None:
    kept: list[int] = []
    for side in (8, 16):
        saved: list[Tensor] = []
        qkv = torch.randn(1, side, side, 3 * 8).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=saved: to.append(x) or x, lambda x: x):
            OPERATOR(qkv, torch.ones(1), None, 1, 2)
        kept.append(sum(x.numel() for x in saved) - 1)
    assert kept[1] == 4 * kept[0]
