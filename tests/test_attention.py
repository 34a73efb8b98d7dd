"""Attentions against their definitions, written out pixel by pixel or in another way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import udit
from conftest import perturb
from udit.errors import UserError
from udit.models.catalog import find
from udit.nn.attention import LowPass, WindowAttention
from udit.nn.specs import BridgedWindow, Downsampled, Full, KVDownsampled, MapAttention, Window

WIDTH, HEADS = 16, 2
LIMIT = 1e-5  # of numbers up to 7: the tables of angles are float32, all else is float64
COMPARISONS = [{"cosine": c, "rope": r} for c in (True, False) for r in (True, False)]
"""How queries and keys may be compared."""


def module(spec: MapAttention, index: int = 0) -> Any:
    """The attention of a spec in float64, no weight of it zero."""
    built = spec.build(WIDTH, HEADS, index)
    for parameter in built.parameters():
        nn.init.constant_(parameter, 0.0)
    return perturb(built, std=0.5).double()


def image(height: int, width: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, height, width, WIDTH, dtype=torch.float64, generator=generator)


@torch.no_grad()
def run(attention: Any, x: Tensor) -> Tensor:
    return attention(x, attention.positions(*x.shape[1:3], x.device))


def turned(x: Tensor, row: float, column: float) -> Tensor:
    """x [R] as complex pairs, even ones turned by the column and odd ones by the row (systems of RoPE in two axes)."""
    pairs = torch.view_as_complex(x.view(-1, 2).contiguous())
    angles = [(row if m % 2 else column) * 10000 ** (-4 * (m // 2) / len(x)) for m in range(len(pairs))]
    return torch.view_as_real(pairs * torch.exp(1j * torch.tensor(angles, dtype=torch.float64))).flatten()


def by_hand(
    spec: MapAttention, attention: Any, sees: list[list[list[int]]], q: Tensor, k: Tensor, v: Tensor, at: Any, to: Any
) -> Tensor:
    """Attention token by token: q [B, N, D], k and v [B, M, D], their positions, and the keys of each query."""
    out = torch.zeros_like(q)
    size = WIDTH // HEADS
    for b in range(len(q)):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            for i in range(q.shape[1]):
                seen = sees[b][i]
                one, others = q[b, i, part], k[b, seen, part]
                if spec.rope:
                    one = turned(one, *at[i])
                    others = torch.stack([turned(row, *to[j]) for j, row in zip(seen, others, strict=True)])
                if spec.cosine:
                    heat = min(attention.logit_scale[head].item(), math.log(100))
                    logits = math.exp(heat) * (others / others.norm(dim=-1, keepdim=True)) @ (one / one.norm())
                else:
                    logits = others @ one / math.sqrt(size)
                out[b, i, part] = logits.softmax(0) @ v[b, seen, part]
    return out


def places(height: int, width: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(height) for column in range(width)]


# ---- definitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", COMPARISONS, ids=str)
@torch.no_grad()
def test_full_attention_is_its_formula(how: dict[str, bool]) -> None:
    spec, x = Full(**how), image(3, 5)
    attention = module(spec)
    q, k, v = attention.qkv(x).flatten(1, 2).chunk(3, dim=-1)
    at, everything = places(3, 5), [[list(range(15))] * 15] * 2
    expected = attention.out(by_hand(spec, attention, everything, q, k, v, at, at)).view_as(x)
    torch.testing.assert_close(run(attention, x), expected, atol=LIMIT, rtol=0)


@pytest.mark.parametrize("how", COMPARISONS, ids=str)
@pytest.mark.parametrize(("height", "width", "shift"), [(4, 8, 0), (4, 8, 2), (8, 4, 2), (4, 12, 2), (3, 8, 2)])
@torch.no_grad()
def test_windows_are_full_attention_among_their_pixels(
    how: dict[str, bool], height: int, width: int, shift: int
) -> None:
    """Windows start at -shift, side - shift, ...; those at the edge are cut off, not wrapped. Positions are global."""
    spec, x = Window(size=4, **how), image(height, width, count=1)
    attention = module(spec, index=1 if shift else 0)
    assert attention.shift == shift
    down, right = shift * (height > 4), shift * (width > 4)
    at = places(height, width)
    home = [((row + down) // 4, (column + right) // 4) for row, column in at]
    sees = [[[j for j in range(len(at)) if home[j] == home[i]] for i in range(len(at))]]
    q, k, v = attention.qkv(x).flatten(1, 2).chunk(3, dim=-1)
    expected = attention.out(by_hand(spec, attention, sees, q, k, v, at, at)).view_as(x)
    torch.testing.assert_close(run(attention, x), expected, atol=LIMIT, rtol=0)


@pytest.mark.parametrize("how", COMPARISONS, ids=str)
@torch.no_grad()
def test_keys_and_values_of_a_coarser_map_are_means_at_their_centres(how: dict[str, bool]) -> None:
    spec, x = KVDownsampled(kernel=3, **how), image(4, 6)
    attention = module(spec)
    first = x.permute(0, 3, 1, 2)
    smooth = F.conv2d(first, attention.filter.weight, attention.filter.bias, padding=1, groups=WIDTH) + first
    coarse = smooth.view(2, WIDTH, 2, 2, 3, 2).mean(dim=(3, 5)).flatten(2).mT
    k, v = attention.kv(coarse).chunk(2, dim=-1)
    to = [(2 * row + 0.5, 2 * column + 0.5) for row, column in places(2, 3)]
    q, everything = attention.q(x).flatten(1, 2), [[list(range(6))] * 24] * 2
    expected = attention.out(by_hand(spec, attention, everything, q, k, v, places(4, 6), to)).view_as(x)
    torch.testing.assert_close(run(attention, x), expected, atol=LIMIT, rtol=0)


@pytest.mark.parametrize("how", COMPARISONS, ids=str)
@torch.no_grad()
def test_sub_grids_are_full_attention_among_their_pixels(how: dict[str, bool]) -> None:
    spec, x = Downsampled(kernel=0, shortcut=False, **how), image(4, 6)
    attention = module(spec)
    at = places(4, 6)
    sees = [[[j for j in range(24) if (at[i][0] - at[j][0]) % 2 == 0 == (at[i][1] - at[j][1]) % 2] for i in range(24)]]
    q, k, v = attention.qkv(x).flatten(1, 2).chunk(3, dim=-1)
    halves = [(row // 2, column // 2) for row, column in at]
    expected = attention.out(by_hand(spec, attention, 2 * sees, q, k, v, halves, halves)).view_as(x)
    torch.testing.assert_close(run(attention, x), expected, atol=LIMIT, rtol=0)


# ---- where two are the same ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", COMPARISONS, ids=str)
@pytest.mark.parametrize(
    "spec",
    [
        Downsampled(factor=1, kernel=0, shortcut=False),
        Window(size=6),
        KVDownsampled(factor=1, kernel=0, shortcut=False),
    ],
    ids=lambda spec: spec.kind,
)
@torch.no_grad()
def test_one_part_of_the_whole_map_is_full_attention(spec: MapAttention, how: dict[str, bool]) -> None:
    full, x = module(Full(**how)), image(4, 6)
    part = spec.replace(**how).build(WIDTH, HEADS, 1).double()
    state = dict(full.state_dict())
    if isinstance(spec, KVDownsampled):
        for key in ("weight", "bias"):
            state[f"q.{key}"], state[f"kv.{key}"] = state.pop(f"qkv.{key}").split([WIDTH, 2 * WIDTH])
    part.load_state_dict(state)
    torch.testing.assert_close(run(part, x), run(full, x), atol=1e-12, rtol=0)


def test_windows_of_every_other_block_are_shifted_by_half_their_side() -> None:
    assert [Window(size=6).build(WIDTH, HEADS, i).shift for i in range(4)] == [0, 3, 0, 3]
    assert [Window(size=6, shift=False).build(WIDTH, HEADS, i).shift for i in range(4)] == [0, 0, 0, 0]


@torch.no_grad()
def test_an_axis_within_one_window_is_not_shifted() -> None:
    straight, shifted = (module(Window(size=4), index) for index in (0, 1))
    assert isinstance(shifted, WindowAttention)
    torch.testing.assert_close(run(shifted, image(4, 3)), run(straight, image(4, 3)), atol=0, rtol=0)
    assert not torch.allclose(run(shifted, image(4, 8)), run(straight, image(4, 8)))


# ---- windows linked by high frequencies ------------------------------------------------------------------------------


@torch.no_grad()
def test_a_bridge_lets_through_what_varies_alone() -> None:
    attention = BridgedWindow(size=4, kernel=3, rope=False).build(WIDTH, HEADS).double()
    for parameter in attention.parameters():
        parameter.normal_(generator=torch.Generator().manual_seed(1))
    between = attention.filter(torch.ones(1, 8, 8, WIDTH // HEADS, dtype=torch.float64))
    torch.testing.assert_close(between[:, 1:-1, 1:-1], attention.filter.bias.expand(1, 6, 6, -1), atol=LIMIT, rtol=0)


@torch.no_grad()
def test_a_bridge_alone_reaches_over_the_windows_borders() -> None:
    attention = BridgedWindow(size=4, kernel=3).build(WIDTH, HEADS).double()
    for parameter in attention.parameters():
        parameter.normal_(generator=torch.Generator().manual_seed(1))
    x = image(8, 8, count=1)
    changed = x.clone()
    changed[0, 1, 3] += 1  # the last column of the first window
    moved = (run(attention, changed) - run(attention, x)).abs().amax(-1)[0] > 1e-9
    assert moved[:4, :4].all(), "the window attends"
    assert moved[:3, 4].all(), "the neighbours across the border"
    assert not moved[3:, 4].any()
    assert not moved[:, 5:].any()
    assert not moved[4:].any()


def test_a_bridge_leaves_a_head_to_attend() -> None:
    with pytest.raises(ValueError, match="bridge_heads is 2 and there are 2 heads"):
        BridgedWindow(bridge_heads=2).check_heads(16, 2)
    with pytest.raises(UserError, match="kernel is 4"):
        BridgedWindow().replace(kernel=4)


@pytest.mark.parametrize("name", ["U-DiT-tiny", "DiT-tiny"])
def test_bridged_windows_train_in_either_shell(name: str) -> None:
    config = find(name).config.replace(attention={"kind": "bridged-window", "size": 2}, heads=2)
    model = perturb(udit.build(config))
    model(torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([1, 2])).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


# ---- filters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense", [False, True])
@torch.no_grad()
def test_the_filter_is_a_convolution_and_its_shortcut_folds(dense: bool) -> None:
    spec = Downsampled(kernel=3, dense=dense)
    attention, x = module(spec), image(4, 6)
    lowpass, first = attention.filter, x.permute(0, 3, 1, 2)
    groups = 1 if dense else WIDTH
    assert isinstance(lowpass, LowPass)
    expected = F.conv2d(first, lowpass.weight, lowpass.bias, padding=1, groups=groups) + first
    torch.testing.assert_close(lowpass(x), expected.permute(0, 2, 3, 1), atol=1e-12, rtol=0)
    folded = spec.folded().build(WIDTH, HEADS).double()
    folded.load_state_dict({**attention.state_dict(), **{f"filter.{k}": v for k, v in lowpass.folded().items()}})
    assert not folded.filter.shortcut
    torch.testing.assert_close(run(folded, x), run(attention, x), atol=1e-12, rtol=0)


# ---- cost ----------------------------------------------------------------------------------------------------------


def products(spec: MapAttention, height: int = 16, width: int = 16) -> dict[str, int]:
    """Multiply-accumulates of one map by kind: attention's two products, matrices, convolutions."""
    with torch.device("meta"):
        attention, x = spec.build(WIDTH, HEADS), torch.empty(1, height, width, WIDTH)
    with FlopCounterMode(display=False) as counter:
        run(attention, x)
    counts = {str(op).split(".")[-1]: flops // 2 for op, flops in counter.get_flop_counts()["Global"].items()}
    matrices = counts["addmm"] + counts.get("mm", 0)
    return {"attention": counts["bmm"], "matrices": matrices, "filter": counts.get("convolution", 0)}


def test_costs_have_the_ratios_that_the_definitions_give() -> None:
    pixels = 16 * 16
    full = products(Full())
    assert full == {"attention": 2 * pixels**2 * WIDTH, "matrices": 4 * pixels * WIDTH**2, "filter": 0}
    for factor in (2, 4):
        for spec in (Downsampled(factor=factor), KVDownsampled(factor=factor)):
            cost = products(spec)
            assert cost["attention"] * factor**2 == full["attention"]
            assert cost["filter"] == 5**2 * pixels * WIDTH
            kv = 2 * pixels * WIDTH**2
            saved = kv - kv // factor**2 if isinstance(spec, KVDownsampled) else 0
            assert cost["matrices"] == full["matrices"] - saved
    assert products(Window(size=4))["attention"] * 16 == full["attention"]
    assert products(Downsampled(dense=True))["filter"] == WIDTH * products(Downsampled())["filter"]


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [Downsampled(), KVDownsampled(), Full(), Window()], ids=lambda spec: spec.kind)
@pytest.mark.parametrize(("width", "heads", "said"), [(16, 3, "split over 3 heads"), (12, 2, "RoPE needs a multiple")])
def test_heads_are_checked_by_spec_and_module(spec: MapAttention, width: int, heads: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spec.check_heads(width, heads)
    with pytest.raises(UserError, match=said):
        spec.build(width, heads)
    if "RoPE" in said:
        spec.replace(rope=False).build(width, heads)


def test_a_dense_filter_needs_a_filter() -> None:
    with pytest.raises(ValueError, match="dense makes the filter an ordinary convolution; with kernel 0 there is none"):
        Downsampled(kernel=0, shortcut=False, dense=True)
