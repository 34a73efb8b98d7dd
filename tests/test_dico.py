"""DiCo: numbers of the official program, and the errors of its config."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import udit
from conftest import DATA, batch, perturb
from udit.errors import UserError
from udit.parity import check_file

TINY = {"width": 8, "depths": (1, 2, 1, 1, 2), "in_channels": 1, "num_classes": 5, "input_size": 8}


def test_official_outputs_and_gradient_norms() -> None:
    report = check_file(DATA / "dico.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "loss", "lossB", "grad_norms", "grad_normsB", "n_params", "n_keys"} <= compared


def test_initial_output_is_zero() -> None:
    model = udit.build("DiCo-S", **TINY)
    assert not model(*batch(model)).any()
    assert not model.encoder[0].blocks[0].modulation.weight.any()
    assert model.conditioners[2].label.weight.std().item() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
def test_channel_attention_sees_the_whole_map() -> None:
    """A pixel out of reach of all 3x3 filters matters."""
    model = perturb(udit.build("DiCo-S", **{**TINY, "depths": (1,), "input_size": 32}))
    x, t, y = torch.zeros(1, 1, 32, 32), torch.tensor([5]), torch.tensor([1])
    far = x.clone()
    far[..., 31, 31] = 100.0
    assert not torch.equal(model(far, t, y)[..., 0, 0], model(x, t, y)[..., 0, 0])


@torch.no_grad()
def test_no_label_is_the_null_label_and_labels_matter() -> None:
    model = perturb(udit.build("DiCo-S", **TINY))
    x, t, y = batch(model)
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 5)))
    assert not torch.equal(model(x, t), model(x, t, y))


@torch.no_grad()
@pytest.mark.parametrize("depths", [(2,), (1, 1, 1), (1, 1, 1, 1, 2, 1, 1)])
def test_other_numbers_of_levels(depths: tuple[int, ...]) -> None:
    model = perturb(udit.build("DiCo-S", **{**TINY, "depths": depths}))
    assert model(*batch(model)).shape == (3, 2, 8, 8)
    again = udit.build(model.config, seed=1)
    udit.import_published(again, udit.export_published(model))
    assert torch.equal(again(*batch(model)), model(*batch(model)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (6, 6)}, "odd number"),
        ({"width": 7}, "width 7 is odd"),
        ({"input_size": 10}, "multiples of 4"),
        ({"ffn": {"kind": "mlp", "ratio": 0.01}}, "no hidden channel"),
        ({"depth": 2}, "did you mean 'depths'"),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("DiCo-S", **{**TINY, **changes})
    assert words in one_line(error.value)


def test_an_approximate_gelu_has_no_published_form(one_line: Callable[[BaseException], str]) -> None:
    model = udit.build("DiCo-S", **{**TINY, "ffn": {"kind": "mlp", "ratio": 2}})
    with pytest.raises(UserError, match="exact GELU only") as caught:
        udit.export_published(model)
    one_line(caught.value)
