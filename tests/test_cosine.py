"""Cosine attention's queries, keys and values in one pass: the numbers of torch's operators, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udit.nn import native
from udit.nn.attention import attend, split_grids
from udit.nn.cosine import cosine_heads
from udit.nn.tokens import rotary_table

pytestmark = pytest.mark.skipif(native.find_compiler() is None, reason="no C++ compiler")

SHAPES = [((2, 8, 12), 2, 16, 2), ((1, 6, 3), 3, 4, 3), ((2, 4, 4), 1, 12, 1), ((1, 16, 16), 4, 24, 2)]


def by_torch(qkv: Tensor, temperature: Tensor, table: Tensor | None, heads: int, factor: int) -> Tensor:
    return attend(*split_grids(qkv, factor, 3, heads), temperature.log(), table)


def by_kernel(qkv: Tensor, temperature: Tensor, table: Tensor | None, heads: int, factor: int) -> Tensor:
    return F.scaled_dot_product_attention(*cosine_heads(qkv, temperature, table, heads, factor), scale=1.0)


def outcome(
    function: object, qkv: Tensor, temperature: Tensor, *rest: object, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Output and gradients."""
    qkv, temperature = (x.to(dtype).detach().clone().requires_grad_() for x in (qkv, temperature))
    out = function(qkv, temperature, *rest)  # type: ignore[operator]
    (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)).sum().backward()
    return [out.detach(), qkv.grad, temperature.grad]


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize(("shape", "heads", "channels", "factor"), SHAPES)
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, int, int], heads: int, channels: int, factor: int, rope: bool
) -> None:
    """As near to float64 as torch's own float32 is, to a factor of three."""
    qkv, temperature = torch.randn(*shape, 3 * heads * channels), torch.linspace(1, 10, heads)
    table = rotary_table(shape[1] // factor, shape[2] // factor, channels) if rope else None
    rest = (table, heads, factor)
    mine, theirs = (outcome(function, qkv, temperature, *rest) for function in (by_kernel, by_torch))
    exact = outcome(by_torch, qkv, temperature, *rest, dtype=torch.float64)
    for ours, torchs, true in zip(mine, theirs, exact, strict=True):
        assert (ours - true).abs().max() <= 3 * (torchs - true).abs().max() + 1e-6 * true.abs().max()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-18, 1e18])
def test_rows_of_any_length_stay_finite(size: float) -> None:
    """Squares below and above float32's range included."""
    qkv = torch.randn(1, 4, 4, 3 * 16)
    qkv[..., :32] *= size
    table = rotary_table(2, 2, 8)
    out, grad, _ = outcome(by_kernel, qkv, torch.ones(2), table, 2, 2)
    torch.testing.assert_close(out, outcome(by_torch, qkv, torch.ones(2), table, 2, 2, dtype=torch.float64)[0].float())
    assert grad.isfinite().all()


def test_bfloat16_is_rotated_and_normalised_in_float32() -> None:
    qkv = torch.randn(2, 4, 4, 3 * 16).bfloat16()
    table = rotary_table(2, 2, 8)
    q, k, v = cosine_heads(qkv, torch.full((2,), 4.0), table, 2, 2)
    exact = cosine_heads(qkv.float(), torch.full((2,), 4.0), table, 2, 2)
    for mine, true in zip((q, k, v), exact, strict=True):
        assert torch.equal(mine, true.bfloat16())


def test_any_number_of_threads_gives_the_same_bits() -> None:
    qkv, temperature, table = torch.randn(2, 8, 8, 3 * 16), torch.ones(2), rotary_table(4, 4, 8)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        parts = [x.requires_grad_() for x in (qkv.clone(), temperature.clone())]
        q, k, v = cosine_heads(*parts, table, 2, 2)
        (q * k + v).square().sum().backward()
        results.append([q, k, v, *(part.grad for part in parts)])
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
