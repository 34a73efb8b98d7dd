"""FiT: numbers of the official programs, rows of several images, extrapolation, and the errors of its config."""

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
from udit.nn.sequences import pack, unpack
from udit.parity import check_file
from udit.parity.network import systems

TINY: dict[str, Any] = {"width": 16, "depth": 3, "heads": 2, "in_channels": 2, "num_classes": 5, "input_size": 8}
TINY |= {"rank": 6}
ONE: dict[str, Any] = {"qk_norm": False, "rank": None, "learn_sigma": True}
WORDS: dict[str, Any] = {"version": 2, "width": 16, "depth": 3, "heads": 2, "patch": 2, "in_channels": 2}
WORDS |= {"classes": 5, "null_label": 5, "noise_at": 0, "learn_sigma": False, "time": "unit"}
WORDS |= {"ffn": {"kind": "swiglu", "hidden": 42}, "qk_norm": "layernorm, no affine, eps 1e-6"}
WORDS |= {"modulation": {"kind": "shared-plus-low-rank", "rank": 6}, "patch_vector": "c p1 p2"}
WORDS |= {"rope": {"theta": 10000.0, "extrapolation": None}}


def tiny(**overrides: Any) -> torch.nn.Module:
    return perturb(udit.build("FiTv2-XL/2", **{**TINY, **overrides}))


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["fit", "fitv2"])
def test_official_outputs_and_gradient_norms(name: str) -> None:
    report = check_file(DATA / f"{name}.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "seq_out", "seq_outB", "loss", "lossB", "grad_norms", "grad_normsB"} <= compared


def test_processes_of_the_weights() -> None:
    one, two = find("FiT-XL/2").config, find("FiTv2-XL/2").config
    assert (one.native_diffusion, one.out_channels) == ({"kind": "ddpm"}, 8)
    assert (two.native_diffusion, two.reversed_flow, two.out_channels) == ({"kind": "flow"}, True, 4)


@pytest.mark.parametrize("options", [ONE, {}], ids=["FiT", "FiTv2"])
@torch.no_grad()
def test_starts_at_zero_and_keeps_the_releases_keys(options: dict[str, Any]) -> None:
    model = udit.build("FiTv2-XL/2", **{**TINY, **options})
    assert not model(*batch(model)).any()
    perturb(model)
    again = udit.build(model.config, seed=1)
    udit.import_published(again, udit.export_published(model))
    assert same_bits(snapshot(again), snapshot(model))


@pytest.mark.parametrize("options", [ONE, {}], ids=["FiT", "FiTv2"])
@torch.no_grad()
def test_images_in_one_row_are_what_they_are_alone(options: dict[str, Any]) -> None:
    model = tiny(**options).double()
    rows = [[normal(2, 8, 4), normal(2, 4, 12, seed=4), normal(2, 2, 2, seed=5)], [normal(2, 6, 6, seed=6)]]
    rows = [[image.double() for image in row] for row in rows]
    t, y = torch.tensor([0.2, 0.7]), torch.tensor([1, 4])
    packed = pack(rows, 2)
    assert packed.mask.tolist() == [[1] * 8 + [2] * 12 + [3], [1] * 9 + [0] * 12]
    out = model.sequence(packed.tokens, t, y, packed.grid, packed.mask)
    assert not out[1, 9:].any()
    for i, (images, made) in enumerate(zip(rows, unpack(out, packed, 2), strict=True)):
        for image, own in zip(images, made, strict=True):
            torch.testing.assert_close(own, model(image[None], t[i : i + 1], y[i : i + 1])[0], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_what_stands_at_padding_changes_nothing() -> None:
    model = tiny()
    packed = pack([[normal(2, 4, 4)], [normal(2, 8, 4, seed=4)]], 2)
    t = torch.tensor([0.2, 0.7])
    out = model.sequence(packed.tokens, t, None, packed.grid, packed.mask)
    other = torch.where(packed.mask[..., None] == 0, 100.0, packed.tokens)
    assert torch.equal(model.sequence(other, t, None, packed.grid, packed.mask), out)


def test_packing_and_unpacking_give_the_images_back() -> None:
    rows = [[normal(3, 4, 6), normal(3, 2, 2)], [normal(3, 8, 2)]]
    packed = pack(rows, 2)
    for images, made in zip(rows, unpack(packed.tokens, packed, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, made, strict=True))


@pytest.mark.parametrize("mode", ["linear", "ntk-aware", "ntk-aware-pro1", "ntk-by-parts", "yarn"])
@torch.no_grad()
def test_extrapolation_begins_beyond_the_trained_side(mode: str) -> None:
    plain, other = tiny(trained_side=6), tiny(trained_side=6, extrapolation=mode)
    _, t, y = batch(plain)
    t = torch.tensor([0.1, 0.5, 0.9])
    beyond, within = normal(3, 2, 16, 12), normal(3, 2, 6, 4)
    assert not torch.allclose(other(beyond, t, y), plain(beyond, t, y), atol=1e-4)
    if mode != "ntk-aware-pro1":  # its factor is at work in every size
        torch.testing.assert_close(other(within, t, y), plain(within, t, y))


@torch.no_grad()
def test_time_shift_is_another_time() -> None:
    plain, shifted = tiny(), tiny(time_shift=3)
    x, _, y = batch(plain)
    t = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(shifted(x, t, y), plain(x, torch.tensor([0.0, 0.5, 1.0]), y))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 20, "heads": 10}, "RoPE needs a multiple of 4"),
        ({"input_size": 9}, "2x2 patches"),
        ({"time": "index", "time_shift": 2}, "it is for times from 0 to 1"),
        ({"extrapolation": "ntk"}, "extrapolation"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("FiTv2-XL/2", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_rows_that_do_not_fit_are_one_line_errors(one_line: Callable[[BaseException], str]) -> None:
    with pytest.raises(UserError, match="3x4 does not split into 2x2 patches") as caught:
        pack([[normal(2, 3, 4)]], 2)
    one_line(caught.value)
    packed = pack([[normal(2, 4, 4)]], 2)
    with pytest.raises(UserError, match=r"must be \[1, 4, 8\], \[1, 2, 4\] and \[1, 4\]") as caught:
        tiny().sequence(packed.tokens, torch.tensor([0.5]), None, packed.grid, packed.mask[:, :2])
    one_line(caught.value)


def test_words_of_a_reference_file(one_line: Callable[[BaseException], str]) -> None:
    config = systems()["fit"](dict(WORDS), (8, 12)).config
    assert (config.ffn.channels(16), config.qk_norm, config.rank, config.size) == (42, True, 6, (8, 12))
    rope = {"theta": 100.0, "extrapolation": {"mode": "yarn", "decouple": True, "trained_side": 4}}
    config = systems()["fit"](WORDS | {"rope": rope}, (8, 8)).config
    assert (config.theta, config.extrapolation, config.decoupled, config.trained_side) == (100, "yarn", True, 4)
    with pytest.raises(UserError, match="the file says 'p1 p2 c'") as caught:
        systems()["fit"](WORDS | {"patch_vector": "p1 p2 c"}, (8, 8))
    one_line(caught.value)
