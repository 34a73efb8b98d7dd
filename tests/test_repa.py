"""REPA: numbers of the official program, its projectors, and the key names of its old checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

import udit
from conftest import DATA, batch, perturb, same_bits, snapshot
from udit.diffusion.alignment import alignment_loss
from udit.errors import UserError
from udit.models.catalog import find
from udit.models.repa.config import Projectors
from udit.parity import check_file
from udit.parity.network import systems

TINY = {"width": 16, "depth": 4, "heads": 2, "in_channels": 2, "num_classes": 5, "input_size": 8}
TINY |= {"projectors": Projectors(after_block=3, hidden=24, widths=(12, 10))}
WORDS = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "input_size": 8, "in_channels": 2, "time": "unit"}
WORDS |= {"classes": 5, "null_label": 5, "noise_at": 1, "learn_sigma": False}
WORDS |= {"projectors": {"after_block": 3, "hidden": 24, "widths": [12, 10]}}


def test_official_outputs_and_gradient_norms() -> None:
    report = check_file(DATA / "repa.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {
        "out",
        "outB",
        "aux0",
        "aux1B",
        "loss",
        "aux0_loss",
        "aux1_lossB",
        "grad_norms",
        "aux0_grad_norms",
    } <= compared
    assert {"aux1_grad_normsB", "skipped_keys", "no_grad_params"} <= compared


def test_its_weights_are_those_of_a_flow_that_ends_at_noise() -> None:
    config = find("REPA-XL/2").config
    assert config.native_diffusion == {"kind": "flow"}
    assert not config.reversed_flow
    assert config.out_channels == config.in_channels == 4


@torch.no_grad()
def test_projections_are_of_the_features_behind_their_block() -> None:
    model = perturb(udit.build("REPA-B/2", **TINY))
    x, _, y = batch(model)
    t = torch.tensor([0.1, 0.5, 0.9])
    out, predicted = model.aligned(x, t, y)
    assert torch.equal(out, model(x, t, y))
    assert [tuple(each.shape) for each in predicted] == [(3, 16, 12), (3, 16, 10)]
    model.blocks[3].ffn.contract.weight.zero_()
    later, same = model.aligned(x, t, y)
    assert not torch.equal(later, out)
    assert all(torch.equal(a, b) for a, b in zip(same, predicted, strict=True))
    model.blocks[2].ffn.contract.weight.zero_()
    assert not torch.equal(model.aligned(x, t, y)[1][0], predicted[0])


@torch.no_grad()
def test_sampling_in_parts_is_the_forward_without_projectors() -> None:
    model = perturb(udit.build("REPA-B/2", **TINY))
    x, _, y = batch(model)
    t = torch.tensor([0.1, 0.5, 0.9])
    expected = model(x, t, y)
    for parameter in model.projectors.parameters():
        parameter.fill_(float("nan"))
    cond = model.condition(t, y)
    entered, skip = model.enter(x, cond)
    assert torch.equal(model.leave(model.deep(entered, cond), skip, cond), expected)


def test_alignment_trains_projectors_and_the_blocks_before_them() -> None:
    model = perturb(udit.build("REPA-B/2", **TINY))
    x, _, y = batch(model)
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(3, 16, width, generator=generator) for width in (12, 10)]
    _, predicted = model.aligned(x, torch.tensor([0.1, 0.5, 0.9]), y)
    for each, wanted in zip(predicted, features, strict=True):
        alignment_loss(each, wanted).mean().backward(retain_graph=True)
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not [name for name in moved if re.match(r"blocks\.3\.|out", name)]
    assert {"embed.weight", "blocks.2.ffn.contract.weight", "projectors.1.4.bias", "conditioner.time.0.weight"} <= moved


@torch.no_grad()
def test_old_checkpoints_count_the_blocks_behind_the_projectors_anew() -> None:
    model = perturb(udit.build("REPA-B/2", **TINY))
    state = {
        re.sub(r"^blocks\.3\.", "decoder_blocks.0.", key): tensor
        for key, tensor in udit.export_published(model).items()
    }
    assert "decoder_blocks.0.attn.qkv.weight" in state
    again = udit.build(model.config, seed=1)
    udit.import_published(again, state)
    assert same_bits(snapshot(again), snapshot(model))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 18}, "multiple of 4"),
        ({"depth": 2}, "after_block is 3 and there are 2 blocks"),
        ({"input_size": 9}, "2x2 patches"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("REPA-B/2", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_words_of_a_reference_file() -> None:
    config = systems()["repa"](dict(WORDS), (8, 8)).config
    assert (config.projectors.widths, config.projectors.after_block, config.out_channels) == ((12, 10), 3, 2)
