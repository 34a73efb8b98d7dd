"""Dropout: the statistics of its masks, and that keys alone decide them, in networks and in whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import perturb
from runs import image_folder, metrics, state_hash, steady_adam
from udit import dist
from udit.errors import UserError
from udit.models.build import checkpoint_activations, compile_blocks
from udit.models.catalog import find
from udit.nn.blocks import Recompute
from udit.nn.dropout import Dropout, dropout_keys, random_bits
from udit.run.recipes import load_run
from udit.training import preview
from udit.training.trainer import Trainer

LEVELS = find("HDiT-tiny").config.model_dump()["stages"]
NETWORKS: dict[str, dict[str, Any]] = {
    "HDiT-tiny": {"stages": [level | {"dropout": 0.25} for level in LEVELS]},
    "ADM-tiny": {"dropout": 0.25},
    "DiMSUM-tiny": {"drop_path": 0.5},
}


def dropped(layer: Dropout, x: Tensor, seed: int = 0) -> Tensor:
    """The layer in training, with keys for a batch."""
    network = nn.Sequential(layer, nn.Linear(1, 1))
    with dropout_keys(network, seed, range(len(x))):
        return layer(x)


def network(name: str) -> nn.Module:
    return perturb(udit.build(name, **NETWORKS[name])).train()


def given(size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 1, 8, 8, generator=generator)
    return x, torch.linspace(0.1, 0.9, size), torch.arange(size)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_that_is_dropped_and_the_mean_are_right(rate: float) -> None:
    out = dropped(Dropout(rate), torch.ones(64, 50, 125))
    kept, count = (out != 0).double(), out.numel()
    spread = math.sqrt(rate * (1 - rate) / count)
    assert kept.mean().item() == pytest.approx(1 - rate, abs=4 * spread)
    assert out[out != 0].unique().tolist() == [pytest.approx(1 / (1 - rate), rel=1e-3)]
    assert out.double().mean().item() == pytest.approx(1, abs=4 * spread / (1 - rate))


def test_numbers_are_uniform_and_neighbours_are_strangers() -> None:
    keys = torch.arange(100)  # as unlike random keys as can be
    numbers = random_bits(keys, 4002).double() / 2**15
    assert numbers.shape == (100, 4002)
    limit = 4.5 / math.sqrt(numbers.numel())
    assert abs(numbers.mean().item()) < limit * math.sqrt(1 / 3)
    assert numbers.square().mean().item() == pytest.approx(1 / 3, abs=limit * math.sqrt(4 / 45))
    for one, other in [(numbers[:-1], numbers[1:])] + [(numbers[:, :-lag], numbers[:, lag:]) for lag in (1, 2, 3, 4)]:
        assert abs((one * other).mean().item()) < limit / 3


def test_whole_samples_are_dropped_from_a_branch() -> None:
    out = dropped(Dropout(0.25, whole=True), torch.ones(4000, 2, 3))
    assert all(len(sample.unique()) == 1 for sample in out[:100])
    assert (out[:, 0, 0] != 0).double().mean().item() == pytest.approx(0.75, abs=4 * math.sqrt(0.1875 / 4000))


def test_rate_next_to_one_still_keeps_the_mean_finite() -> None:
    assert dropped(Dropout(0.9999999), torch.ones(2, 8)).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_masks_follow_the_keys_alone(name: str) -> None:
    model, (x, t, y) = network(name), given()

    def out(seed: int, positions: list[int], which: slice = slice(None)) -> Tensor:
        with dropout_keys(model, seed, positions):
            return model(x[which], t[which], y[which])

    whole = out(0, [5, 6, 7, 8])
    assert torch.equal(out(0, [5, 6, 7, 8]), whole)
    assert not torch.equal(out(1, [5, 6, 7, 8]), whole)
    assert not torch.equal(out(0, [9, 10, 11, 12]), whole)
    parts = torch.cat([out(0, [5], slice(1)), out(0, [6, 7, 8], slice(1, 4))])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_evaluation_knows_no_dropout(name: str) -> None:
    model, plain = network(name).eval(), perturb(udit.build(name)).eval()
    assert torch.equal(model(*given()), plain(*given()))


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputed_activations_meet_the_same_masks(name: str) -> None:
    model = network(name)

    def gradients(recompute: Recompute) -> list[Tensor]:
        model.zero_grad()
        checkpoint_activations(model, recompute)
        with dropout_keys(model, 0, range(4)):
            loss = model(*given()).square().mean()
        loss.backward()  # outside, as autograd may run it in another thread
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    kept = gradients(False)
    for recompute in (True, "selective"):
        assert all(map(torch.equal, kept, gradients(recompute)))  # type: ignore[arg-type]


def test_layers_of_a_network_have_masks_of_their_own() -> None:
    layers = nn.Sequential(Dropout(0.5), Dropout(0.5), nn.Linear(1, 1))
    with dropout_keys(layers, 0, [0]):
        one, two = (layer(torch.ones(1, 4000)) != 0 for layer in layers[:2])
    assert (one == two).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))


def test_stochastic_depth_rises_from_the_second_block() -> None:
    config = find("DiMSUM-L/2").config
    rates = [config.drop_rate(i) for i in range(config.depth)]  # type: ignore[attr-defined]
    assert rates[:2] == [0, 0]
    assert rates[1:] == pytest.approx([0.1 * i / 15 for i in range(15)])


@torch.no_grad()
def test_nothing_is_dropped_without_keys() -> None:
    model = network("ADM-tiny")
    assert torch.equal(model(*given()), model.eval()(*given()))


def test_keys_of_another_batch_are_refused(one_line: Callable[[BaseException], str]) -> None:
    model = network("ADM-tiny")
    with (
        pytest.raises(UserError, match="for 3 samples and was handed 4; call udit") as told,
        dropout_keys(model, 0, range(3)),
    ):
        model(*given())
    one_line(told.value)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains, or goes on training, a run with dropout in a folder of the name; returns the folder."""
    monkeypatch.setattr(preview, "save_curve", lambda *_: None)
    data = image_folder(tmp_path / "data")

    def run(name: str, *words: str) -> Path:
        small = ["model=ADM-tiny", "model.dropout=0.2", "training.batch_size=4", "sampling.steps=1"]
        small += ["sampling.guidance=1", f"out={tmp_path / name}", *data, *words]
        Trainer(load_run("digits", small), dist.World()).train(progress=False)
        return tmp_path / name

    return run


@pytest.mark.slow
def test_run_with_dropout_resumes_to_the_same_bits(trained: Callable[..., Path]) -> None:
    trained("cut", "training.steps=1")
    unbroken = state_hash(trained("unbroken", "training.steps=3"))
    assert state_hash(trained("cut", "training.steps=3")) == unbroken
    assert state_hash(trained("without", "training.steps=3", "model.dropout=0")) != unbroken


def test_run_with_dropout_in_other_parts_has_the_same_losses(trained: Callable[..., Path]) -> None:
    with steady_adam():
        whole, parts = (
            [line["loss"] for line in metrics(trained(str(n), f"training.accumulation={n}", "training.steps=3"))]
            for n in (1, 2)
        )
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_meet_the_same_masks() -> None:
    model, (x, t, y) = network("HDiT-tiny"), given()
    outs = []
    for _ in range(2):
        for step in range(3):
            with dropout_keys(model, 0, range(4 * step, 4 * step + 4)):
                outs.append(model(x, t, y))
        compile_blocks(model)
    for plain, compiled in zip(outs[:3], outs[3:], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
