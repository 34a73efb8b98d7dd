"""What begins to look wrong in a training is one line, in the logs too; sound trainings are quiet."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor, nn

from runs import image_folder, metrics, small_run, train
from udit import dist
from udit.data.batches import Batch
from udit.diffusion.objective import Losses
from udit.training.alarms import Alarm, Alarms, Bounds, grid_excess
from udit.training.ema import EMA
from udit.training.learner import Learner
from udit.training.records import StepRecord
from udit.training.trainer import Trainer

SPIKED = 26
"""The step whose loss is planted."""


def record(step: int, loss: float, norm: float = 1.0, waited: float = 0.0) -> StepRecord:
    return StepRecord(step, 1e-3, loss, loss, None, norm, 1.0, waited)


def kinds(alarms: list[Alarm]) -> list[str]:
    return [alarm.kind for alarm in alarms]


# -- spikes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "least"), [(0.0, 5.0), (0.3, 5.0), (3.0, 1000.0)])
def test_bound_is_wide_where_losses_vary(spread: float, least: float) -> None:
    draw, alarms = random.Random(0), Alarms()
    for step in range(1, 300):
        value = 10 ** (spread * (draw.random() - 0.5))
        assert value <= alarms.bounds(step).loss, "sound losses, of whatever spread, are none"
        assert not alarms.step(record(step, value, value), None)
    bounds = alarms.bounds(300)
    assert bounds.loss == bounds.grad_norm >= least * 0.9
    assert bounds.loss < 1e13


def test_no_bound_before_there_are_twenty_steps_or_where_a_loss_is_zero() -> None:
    alarms = Alarms()
    for step in range(1, 21):
        alarms.step(record(step, 1.0), None)
    assert alarms.bounds(21) == Bounds(math.inf, math.inf), "the step before is not counted"
    assert alarms.bounds(22) == pytest.approx((5.0, 5.0))
    alarms.step(record(21, 1.0, norm=0.0), None)
    assert alarms.bounds(22) == pytest.approx((5.0, 5.0))
    assert alarms.bounds(23) == pytest.approx((5.0, math.inf))


@pytest.fixture
def spiking(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample's loss at one step is a thousand times what it is."""
    real, begin = Learner.losses, Learner.begin
    now = [0]

    def count(self: Learner, done: int, *arguments: object) -> object:
        now[0] = done + 1
        return begin(self, done, *arguments)  # type: ignore[arg-type]

    def losses(self: Learner, batch: Batch) -> Losses:
        found = real(self, batch)
        if now[0] != SPIKED:
            return found
        factor = torch.ones_like(found.loss)
        factor[1] = 1e3
        return Losses(found.loss * factor, found.mse, found.vb)

    monkeypatch.setattr(Learner, "begin", count)
    monkeypatch.setattr(Learner, "losses", losses)


def small(out: Path, data: list[str], *more: str) -> list[str]:
    quiet = ["training.sample_every=1000", "training.steps=28", "training.save_every=10", "sampling.steps=1"]
    return [*data, *quiet, *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return image_folder(tmp_path_factory.mktemp("data") / "images")


def weights_after(out: Path, overrides: list[str]) -> dict[int, float]:
    """{step: sum of the weights}."""
    trainer = Trainer(small_run(out, *overrides), dist.World())
    return {
        found.step: sum(float(p.detach().double().sum()) for p in trainer.learner.model.parameters())
        for found in trainer.steps()
    }


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["warn", "skip", "rollback"])
def test_spike_is_told_with_its_samples_and_followed_by_what_is_asked_for(
    policy: str, spiking: None, data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        sums = weights_after(out, small(out, data, f"training.on_spike={policy}"))
    lines = {line["step"]: line for line in metrics(out)}
    assert [step for step, line in lines.items() if "alarms" in line] == [SPIKED]
    text = lines[SPIKED]["alarms"]["spike"]  # type: ignore[index]
    assert text in caplog.text
    assert f"at step {SPIKED}, median of the steps before" in text
    assert "highest losses: " in text and ".png" in text
    moved, back = sums[SPIKED] != sums[SPIKED - 1], sums[SPIKED] == sums[20]
    assert (moved, back) == {"warn": (True, False), "skip": (False, False), "rollback": (True, True)}[policy]
    assert sums[SPIKED + 1] != sums[SPIKED], "training goes on"
    if policy == "rollback":
        assert text.endswith("back to the weights of step 20")


@pytest.mark.slow
def test_rollback_after_an_interruption_is_the_one_without(spiking: None, data: list[str], tmp_path: Path) -> None:
    overrides = small(tmp_path, data, "training.on_spike=rollback", "training.keep=3")
    whole = weights_after(tmp_path / "whole", overrides)
    cut = Trainer(small_run(tmp_path / "cut", *overrides), dist.World())
    for found in cut.steps():
        if found.step == 23:
            break
    rest = weights_after(tmp_path / "cut", overrides)
    assert rest == {step: value for step, value in whole.items() if step > 23}
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


# -- previews ----------------------------------------------------------------------------------------------------------


def network(value: float) -> nn.Module:
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.fill_(value)
    return module


def test_average_that_stands_still_is_told_once() -> None:
    alarms = Alarms()
    found = [alarms.preview(step, None, network(float(step)), network(1.0), None) for step in (1, 2, 3)]
    assert [kinds(part) for part in found] == [[], ["ema-frozen"], []]
    assert not alarms.preview(4, None, network(3.0), network(1.0), None), "nor where the weights stand still"


def test_average_that_drifts_away_is_told() -> None:
    alarms = Alarms()
    found = [alarms.preview(step, None, network(1.0), network(1 - 0.2 * step), None) for step in range(1, 6)]
    assert [kinds(part) for part in found] == [[], [], [], ["ema-drift"], []]
    assert "differ from the weights by 80%" in found[3][0].text
    steady = Alarms()
    assert not any(steady.preview(step, None, network(1.0), network(0.2), None) for step in range(1, 6))


def test_validation_loss_that_rises_while_training_loss_falls_is_told() -> None:
    for falls in (True, False):
        alarms = Alarms()
        found: list[Alarm] = []
        for step, loss in enumerate([1.0, 0.8, 0.9, 1.0, 1.1], 1):
            alarms.step(record(step, 1 / step if falls else 1.0), None)
            found += alarms.preview(step, loss, network(1.0), network(1.0), None)
        assert kinds(found) == ["overfitting"] * falls
        assert not falls or found[0].text.startswith("validation loss rises (0.8 at step 2, now 1.1) while training")


def noise(period: int | None, strength: float = 0.5) -> Tensor:
    """Smooth images [16, 1, 32, 32], with lines every ``period`` pixels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.randn(16, 1, 8, 8, generator=generator), 32, mode="bicubic")
    x = x + 0.02 * torch.randn(x.shape, generator=generator)
    if period is not None:
        x[..., ::period] += strength
        x[..., ::period, :] += strength
    return 128 + 40 * x


@pytest.mark.parametrize("period", [2, 4, 8])
def test_lines_of_a_patch_stand_out_from_the_frequencies_beside_them(period: int) -> None:
    usual, lined = grid_excess(noise(None), period), grid_excess(noise(period), period)
    assert usual is not None and lined is not None
    assert abs(usual) < math.log(3) < lined - usual


def test_grid_is_not_measured_on_images_of_few_patches() -> None:
    assert grid_excess(noise(None), 1) is None
    assert grid_excess(noise(None), 16) is None
    assert grid_excess(noise(None), 5) is None


def test_grid_is_told_at_the_second_preview_that_shows_it() -> None:
    alarms = Alarms()
    steps = (200, 400, 600, 800, 1000)
    found = [alarms.preview(step, None, network(float(step)), network(float(step)), 2.0) for step in steps]
    assert [kinds(part) for part in found] == [[], [], [], ["patch-grid"], []], "not within the first 500 steps"


# -- in a run ----------------------------------------------------------------------------------------------------------


def test_waiting_for_images_is_told_and_is_no_part_of_the_state() -> None:
    alarms = Alarms()
    found = [kinds(alarms.step(record(step, 1.0, waited=0.5), None)) for step in range(1, 203)]
    assert [step for step, part in enumerate(found, 1) if part] == [100], "once"
    assert "waiting" not in json.dumps(alarms.state())
    line = dataclasses.replace(record(1, 1.0), alarms=(Alarm("waiting", "w"), Alarm("spike", "s"))).line()
    assert line["alarms"] == {"spike": "s"} and line["waiting"] == "w"


def test_state_of_a_checkpoint_is_the_state() -> None:
    alarms = Alarms()
    for step in range(1, 60):
        alarms.step(record(step, 1 / step, 2 / step), None)
        if step % 10 == 0:
            alarms.preview(1000 + step, 1.0 + step, network(1.0 + step), network(1.0), 2.0)
    again = Alarms.of(json.loads(json.dumps(alarms.state())))
    again.waits = alarms.waits
    assert again == alarms
    assert Alarms.of(None) == Alarms()


def test_frozen_average_of_a_run_is_told_in_both_logs(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EMA, "update", lambda *_: None)
    train(tmp_path / "run", *data, "training.steps=3", "training.sample_every=1", "sampling.steps=1")
    told = [line["alarms"] for line in metrics(tmp_path / "run") if "alarms" in line]
    assert [list(part) for part in told] == [["ema-frozen"]]  # type: ignore[call-overload]
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    texts = [
        value.tensor.string_val[0].decode()
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == "alarms/ema-frozen"
    ]
    assert len(texts) == 1 and "what they were at the last preview" in texts[0]


def test_sound_run_is_quiet(data: list[str], tmp_path: Path) -> None:
    train(tmp_path / "run", *data, "training.steps=60", "training.sample_every=15", "sampling.steps=1")
    assert not [line for line in metrics(tmp_path / "run") if "alarms" in line]
