"""Wan 2.1: numbers of the official program, patches in time, rotary positions, texts and labels, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from udit.errors import UserError
from udit.models.catalog import find
from udit.nn.clips import patchify_clips, unpatchify_clips
from udit.nn.rotary import axial_rotary_grid
from udit.ops.attention import rotate
from udit.parity import check_file
from udit.parity.network import systems

TINY: dict[str, Any] = {"width": 24, "depth": 2, "heads": 2, "in_channels": 2, "input_size": 4, "frames": 4}
TINY |= {"patch_frames": 2, "context": {"tokens": 3, "width": 10}, "ffn": {"ratio": 2}}
LABELS: dict[str, Any] = {**TINY, "context": None, "num_classes": 5}
WORDS: dict[str, Any] = {"depth": 2, "width": 24, "heads": 2, "patch": [2, 2, 2], "in_channels": 2, "out_channels": 2}
WORDS |= {"ffn": {"kind": "gelu-tanh", "hidden": 40}, "layout": "b c f h w", "learn_sigma": False, "time": "index"}
WORDS |= {"flow_time": "1000*sigma", "noise_at": 1000, "context": {"tokens": 3, "width": 10}}
WORDS |= {"classes": 0, "null_label": None}


def tiny(values: dict[str, Any] = TINY, **overrides: Any) -> torch.nn.Module:
    return perturb(udit.build("Wan2.1-1.3B", **{**values, **overrides}))


def text(model: torch.nn.Module, rows: int = 3) -> Tensor:
    return torch.randn(rows, *model.config.condition_shape, generator=torch.Generator().manual_seed(5))


def test_official_outputs_and_gradient_norms() -> None:
    report = check_file(DATA / "wan.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "lossB", "grad_norms", "grad_normsB", "grad_contextB", "no_grad_params"} <= compared


def test_weights_are_those_of_a_flow() -> None:
    config = find("Wan2.1-1.3B").config
    assert (config.native_diffusion, config.reversed_flow, config.out_channels) == ({"kind": "flow"}, False, 16)
    assert config.rotary == (44, 42, 42)


@torch.no_grad()
def test_keeps_the_releases_keys() -> None:
    model = tiny()
    again = udit.build(model.config, seed=1)
    udit.import_published(again, udit.export_published(model))
    assert same_bits(snapshot(again), snapshot(model))


def test_patches_of_time_go_out_and_in() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8).float()
    blocks = patchify_clips(x, 2, 2)
    assert blocks.shape == (2, 2, 3, 4, 24)
    assert torch.equal(blocks[1, 1, 2, 3], x[1, :, 2:4, 4:6, 6:8].flatten())
    channel_last = blocks.unflatten(-1, (3, 8)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify_clips(channel_last, 2, 2), x)


def test_rotary_products_depend_on_distances_along_each_axis() -> None:
    table = axial_rotary_grid((3, 2, 4), (4, 2, 2))
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 8, generator=generator).double()
    turned_q, turned_k = (rotate(part.expand(24, 8), table.double()) for part in (q, k))
    product = (turned_q @ turned_k.T).view(3, 2, 4, 3, 2, 4)
    torch.testing.assert_close(product[0, 0, 1, 1, 1, 3], product[1, 0, 0, 2, 1, 2])
    assert not torch.isclose(product[0, 0, 1, 1, 1, 3], product[0, 0, 1, 1, 1, 2])
    first = table[:, :8].view(2, 2, 4, 8)  # of frame 0: the first four channels do not turn
    assert torch.equal(first[0, ..., :4], torch.ones(2, 4, 4))
    assert not torch.equal(first[0, 1, :, 4:6], torch.ones(4, 2))


@torch.no_grad()
def test_a_text_is_its_tokens_in_any_order() -> None:
    model = tiny()
    x, t, _ = batch(model)
    y = text(model)
    torch.testing.assert_close(model(x, t, y[:, [2, 0, 1]]), model(x, t, y), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(x, t, 2 * y), model(x, t, y), atol=1e-4)


@torch.no_grad()
def test_a_label_is_a_text_of_one_token() -> None:
    model = tiny(LABELS)
    x, t, y = batch(model)
    words = tiny(LABELS, num_classes=0, context={"tokens": 1, "width": 24})
    words.load_state_dict({name: value for name, value in model.state_dict().items() if name != "label.weight"})
    assert torch.equal(words(x, t, model.label.weight[y][:, None]), model(x, t, y))
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 5)))
    with pytest.raises(UserError, match="Wan's release takes texts"):
        udit.export_published(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 5}, "does not split over 5 heads"),
        ({"width": 22}, "11 channels per head; RoPE needs an even number, e.g. width 24"),
        ({"frames": 5}, "frames 5 do not split into patches of 2"),
        ({"input_size": 5}, "2x2 patches"),
        ({"num_classes": 5}, "context replaces labels"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("Wan2.1-1.3B", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_frames_that_are_no_whole_patches_are_a_one_line_error(one_line: Callable[[BaseException], str]) -> None:
    model = tiny()
    x, t, _ = batch(model)
    with pytest.raises(UserError, match="a clip has 3 frames and patches have 2") as caught:
        model(x[:, :, :3], t, text(model))
    one_line(caught.value)


def test_words_of_a_reference_file() -> None:
    described = systems()["wan"](dict(WORDS), (4, 6))
    assert (described.channel_axis, described.config.size, described.config.patch_frames) == (1, (4, 6), 2)
    assert round(described.config.ffn.ratio * 24) == 40


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": [1, 2, 4]}, "a patch's sides"),
        ({"out_channels": 4}, "out_channels"),
        ({"flow_time": "t"}, "flow_time"),
    ],
)
def test_what_is_not_built_is_a_one_line_error(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        systems()["wan"](WORDS | changes, (4, 4))
    one_line(caught.value)
