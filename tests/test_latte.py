"""Latte: numbers of the official program, what attends to what, MACs, and the errors of its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from udit.analysis import cost
from udit.errors import UserError
from udit.models.catalog import find
from udit.parity import check_file
from udit.parity.network import systems

TINY: dict[str, Any] = {"width": 16, "depth": 4, "heads": 2, "in_channels": 2, "num_classes": 5, "input_size": 4}
TINY |= {"frames": 3}
WORDS: dict[str, Any] = {
    "width": 16,
    "depth": 4,
    "heads": 2,
    "patch": 2,
    "in_channels": 2,
    "input_size": 4,
    "frames": 3,
}
WORDS |= {"layout": "b f c h w", "classes": 5, "null_label": 5, "learn_sigma": True, "time": "index"}


def tiny(**overrides: Any) -> torch.nn.Module:
    return perturb(udit.build("Latte-S/2", **{**TINY, **overrides}))


def test_official_outputs_and_gradient_norms() -> None:
    report = check_file(DATA / "latte.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "cfg4B", "lossB", "grad_norms", "grad_normsB", "skipped_keys", "no_grad_params"} <= compared


@pytest.mark.parametrize(
    ("size", "billions"),
    [
        ("S", "93.63"),
        pytest.param("B", "364.11", marks=pytest.mark.slow),
        pytest.param("L", "1285.10", marks=pytest.mark.slow),
        pytest.param("XL", "1892.96", marks=pytest.mark.slow),
    ],
)
def test_macs_with_the_repeated_modulations_are_the_official_ones(size: str, billions: str) -> None:
    """The official program computes each block's modulation for every frame, or every place, of a clip again."""
    config = find(f"Latte-{size}/2").config
    places, half, square = 256, config.depth // 2, config.width**2
    repeated = 6 * square * half * (config.frames - 1 + places - 1) + 2 * square * (config.frames - 1)
    assert f"{(cost(config).macs + repeated) / 1e9:.2f}" == billions


@torch.no_grad()
def test_starts_at_zero_and_keeps_the_releases_keys() -> None:
    model = udit.build("Latte-S/2", **TINY)
    assert not model(*batch(model)).any()
    perturb(model)
    again = udit.build(model.config, seed=1)
    udit.import_published(again, udit.export_published(model))
    assert same_bits(snapshot(again), snapshot(model))


@torch.no_grad()
def test_frames_of_one_place_meet_along_time_and_no_others_do() -> None:
    model = tiny(depth=2)
    x, t, y = batch(model)
    changed = x.clone()
    changed[:, :, 2, 2:, 2:] += 1  # one patch of the last frame
    cond = model.condition(t, y)
    entered, other = model.enter(x, cond)[0], model.enter(changed, cond)[0]
    first, second = model.blocks
    after, other_after = first(entered, cond.blocks[0]), first(other, cond.blocks[0])
    assert torch.equal(after[:, :2], other_after[:, :2])  # within frames: other frames know nothing of it
    assert not torch.isclose(after[:, 2], other_after[:, 2], rtol=1e-6).all(-1).any()  # all of its own do
    along, other_along = second(entered, cond.blocks[1]), second(other, cond.blocks[1])
    differs = ~torch.isclose(along, other_along, rtol=1e-6).all(-1)[0]
    assert differs[:, 1, 1].all()
    assert not differs[:, 0].any()


@torch.no_grad()
def test_the_order_of_frames_is_seen_from_the_first_block_along_time_on() -> None:
    model = tiny()
    x, t, y = batch(model)
    out = model(x, t, y)
    assert not torch.allclose(model(x.flip(2), t, y).flip(2), out, atol=1e-4)
    times, model.times = model.times, lambda frames, device=None: torch.zeros(frames, 16)
    torch.testing.assert_close(model(x.flip(2), t, y).flip(2), model(x, t, y), atol=1e-5, rtol=1e-4)
    model.times = times


@torch.no_grad()
def test_other_numbers_of_frames_run() -> None:
    model = tiny()
    _, t, y = batch(model)
    x = torch.randn(3, 2, 7, 4, 4, generator=torch.Generator().manual_seed(2))
    assert model(x, t, y).shape == (3, 4, 7, 4, 4)


def test_images_are_no_clips(one_line: Callable[[BaseException], str]) -> None:
    model = tiny()
    x, t, y = batch(model)
    with pytest.raises(UserError, match=r"x is \[3, 2, 4, 4\]; Latte takes clips, \[B, C, F, H, W\]") as caught:
        model(x[:, :, 0], t, y)
    one_line(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 18}, "multiple of 4"),
        ({"depth": 3}, "depth 3 is odd"),
        ({"input_size": 5}, "2x2 patches"),
        ({"frames": 0}, "frames"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("Latte-S/2", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_words_of_a_reference_file(one_line: Callable[[BaseException], str]) -> None:
    described = systems()["latte"](dict(WORDS), (4, 4))
    assert (described.channel_axis, described.config.input_shape()) == (2, (2, 3, 4, 4))
    with pytest.raises(UserError, match="the file says 'b c h w'") as caught:
        systems()["latte"](WORDS | {"layout": "b c h w"}, (4, 4))
    one_line(caught.value)
