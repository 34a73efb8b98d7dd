"""DiC: numbers of the official program, published keys and sizes, and the errors of its config."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

import udit
from conftest import DATA, batch, perturb
from peers import assert_golden, golden_input, golden_model
from udit.errors import UserError
from udit.models.dic.config import DiCConfig

GOLDEN = json.loads((DATA / "dic-goldens.json").read_text())
TINY = {"width": 8, "depths": (4, 1, 1, 2, 4), "in_channels": 1, "num_classes": 5, "input_size": 8, "skip_stride": 3}


@torch.no_grad()
def test_official_output() -> None:
    config = DiCConfig(width=16, depths=(4, 4, 2, 4, 4), num_classes=10, input_size=16)
    out = golden_model(config)(golden_input(2, 4, 16, 16), torch.tensor([7, 803]), torch.tensor([3, 9]))
    assert_golden(out, GOLDEN["dic-tiny h16 depth[4,4,2,4,4]"])


def test_initial_output_is_zero_and_gates_start_open() -> None:
    model = udit.build("DiC-S", **TINY)
    assert not model(*batch(model)).any()
    assert all(block.modulation.weight.std() > 0.01 for block in model.encoder[0].blocks)
    assert all((block.norm_in.weight == 1).all() for block in model.decoder[0].blocks)
    assert model.conditioners[2].label.weight.std().item() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
def test_no_label_is_the_null_label_and_labels_matter() -> None:
    model = perturb(udit.build("DiC-S", **TINY))
    x, t, y = batch(model)
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 5)))
    assert not torch.equal(model(x, t), model(x, t, y))


@torch.no_grad()
def test_one_level_is_a_plain_stack() -> None:
    model = perturb(udit.build("DiC-S", **{**TINY, "depths": (2,)}))
    assert model(*batch(model)).shape == (3, 2, 8, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (6, 6)}, "odd number"),
        ({"depths": (6, 1, 2)}, "mirror"),
        ({"width": 6}, "power of two"),
        ({"width": 72}, "of 32"),
        ({"input_size": 10}, "multiples of 4"),
        ({"skip_strid": 2}, "did you mean 'skip_stride'"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("DiC-S", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_an_odd_input_is_refused_before_it_is_halved(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("DiC-S", **TINY)
    with pytest.raises(ValueError, match="multiples of 4") as error:
        model(torch.zeros(1, 1, 8, 6), torch.zeros(1))
    one_line(error.value)
