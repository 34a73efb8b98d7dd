"""PDE-Transformer: numbers of the official program, its windows, and the errors of its config."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import udit
from conftest import DATA, batch, perturb
from udit import ops
from udit.errors import UserError
from udit.models.pde.network import Stage
from udit.parity import check_file

TINY = {"width": 16, "heads": 2, "depths": (2, 2, 2), "patch": 1, "window": 4, "in_channels": 1, "num_classes": 5}
TINY |= {"input_size": 8}


@pytest.mark.parametrize("name", ["pde", "pde-bounded"])
def test_official_outputs_and_gradient_norms(name: str) -> None:
    report = check_file(DATA / f"{name}.npz")
    assert report.ok, str(report)
    compared = {check.name.split(" ")[0] for check in report.checks}
    assert {"out", "outB", "loss", "lossB", "grad_norms", "grad_normsB", "n_params", "n_keys"} <= compared


def test_initial_output_is_zero_and_blocks_are_not() -> None:
    """Gates are 1 + g, so that attention and FFN act from the start, unlike those of adaLN-Zero."""
    model = udit.build("PDE-Transformer-S", **TINY)
    x, t, y = batch(model)
    assert not model(x, t / 1000, y).any()
    block = model.encoder[0].blocks[0]
    assert not block.modulation.weight.any()
    assert torch.equal(block.norm1.weight, torch.ones(16))
    h = torch.randn(1, 4, 4, 16)
    assert not torch.equal(block(h, block.condition(torch.zeros(1, 16)), None), h)


def first_stage(**changes: object) -> Stage:
    model = perturb(udit.build("PDE-Transformer-S", **{**TINY, **changes}))
    return model.encoder[0]


@torch.no_grad()
def test_windows_reach_across_the_edge_of_a_periodic_domain_alone() -> None:
    """Of a shifted block: the last row's window holds the first row."""
    for periodic, reached in ((True, True), (False, False)):
        stage = first_stage(periodic=periodic)
        mods = stage.condition(torch.zeros(1, 16))
        x = torch.randn(1, 8, 8, 16)
        other = x.clone()
        other[:, 0] += 1
        assert (not torch.equal(stage(x, mods)[:, -1], stage(other, mods)[:, -1])) is reached


@torch.no_grad()
def test_relative_positions_follow_the_formula() -> None:
    """Liu et al. 2022, Sec. 3.3: an MLP of sign(d) log2(1 + 8 |d| / (w - 1)) / log2(8), then 16 sigmoid."""
    positions = first_stage().blocks[0].attention.positions
    bias = positions().view(2, 4, 4, 4, 4)
    for query, key in (((0, 0), (3, 2)), ((3, 1), (0, 1)), ((2, 2), (2, 2))):
        offset = torch.tensor([float(q - k) for q, k in zip(query, key, strict=True)])
        scaled = offset.sign() * (1 + 8 * offset.abs() / 3).log2() / 3
        wanted = 16 * torch.sigmoid(positions.contract(torch.relu(positions.expand(scaled))))
        torch.testing.assert_close(bias[(slice(None), *query, *key)], wanted)


@torch.no_grad()
def test_maps_that_do_not_split_into_windows_are_padded() -> None:
    model = perturb(udit.build("PDE-Transformer-S", **{**TINY, "input_size": 12}))
    x, t, y = batch(model)
    assert model(x, t / 1000, y).shape == (3, 1, 12, 12)
    assert model(x[..., :8], t / 1000, y).shape == (3, 1, 12, 8)


def test_bias_of_attention_has_second_derivatives() -> None:
    """The bias is learnt: a gradient's gradient reaches it, and equals finite differences."""
    torch.manual_seed(0)
    q, k, v, bias = (torch.randn(s, dtype=torch.float64) for s in ((1, 2, 4, 8),) * 3 + ((2, 4, 4),))
    direction = torch.randn_like(q)

    def gradient(bias: torch.Tensor, graph: bool = False) -> torch.Tensor:
        x = q.clone().requires_grad_()
        out = ops.attend(x, k, v, torch.zeros(2, dtype=torch.float64), mask=bias).pow(2).sum()
        return (torch.autograd.grad(out, x, create_graph=graph)[0] * direction).sum()

    leaf = bias.clone().requires_grad_()
    (found,) = torch.autograd.grad(gradient(leaf, graph=True), leaf)
    step = torch.zeros_like(bias)
    step[1, 2, 3] = 1e-6
    true = (gradient(bias + step) - gradient(bias - step)) / 2e-6
    assert float(found[1, 2, 3]) == pytest.approx(float(true), rel=1e-5)


@torch.no_grad()
def test_time_runs_from_0_to_1_and_labels_matter() -> None:
    model = perturb(udit.build("PDE-Transformer-S", **TINY))
    x, t, y = batch(model)
    t = t / 1000
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 5)))
    assert not torch.equal(model(x, t), model(x, t, y))
    assert model.config.native_diffusion == {"kind": "flow"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": (6, 6)}, "odd number"),
        ({"width": 18}, "multiple of 4"),
        ({"input_size": 9}, "multiples of 2"),
        ({"width": 2048}, "at most 2048 are built"),
        (
            {"periodic": False, "input_size": 12},
            "level 2 of an input of 12x12 is 6x6, which does not split into windows",
        ),
    ],
)
def test_errors_tell_the_rule_in_one_line(
    changes: dict[str, object], words: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as error:
        udit.build("PDE-Transformer-S", **{**TINY, **changes})
    assert words in one_line(error.value)


@pytest.mark.parametrize(
    ("changes", "words"), [({"ffn": {"kind": "mlp"}}, "exact GELU only"), ({"num_classes": 0}, "a label for each kind")]
)
def test_forms_that_the_release_lacks_have_no_published_keys(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        udit.export_published(udit.build("PDE-Transformer-S", **{**TINY, **changes}))
