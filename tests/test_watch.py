"""A training that goes wrong with finite numbers is noticed, and a sound one is left alone."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from conftest import succeeds
from runs import RECIPE, SMALL, metrics, small_run, train
from udit.checkpoint import CheckpointStore
from udit.data.batches import Batch
from udit.diffusion.objective import Losses
from udit.training import preview
from udit.training.learner import Learner
from udit.training.records import StepRecord
from udit.training.trainer import Trainer
from udit.training.watch import Watch

TOLD = "the loss exploded at step 5: loss "


def records(losses: Iterable[float], norms: Iterable[float] | None = None, start: int = 0) -> Iterator[StepRecord]:
    losses = list(losses)
    norms = [1.0] * len(losses) if norms is None else norms
    for i, (loss, norm) in enumerate(zip(losses, norms, strict=True), start + 1):
        yield StepRecord(i, 1e-3, loss, loss, None, norm, 1.0, 0.0, ("a",) if math.isnan(loss) else ())


def watched(losses: Iterable[float], norms: Iterable[float] | None = None) -> Watch:
    watch = Watch()
    told = [record.step for record in records(losses, norms) if watch.see(record)]
    assert told == ([watch.trouble.step] if watch.trouble else []), "once"
    return watch


def sound(steps: int, spread: float, seed: int, level: float = 0.03) -> list[float]:
    """Losses that fall from 1 to a level, and vary by ``spread`` decades, evenly in the logarithm."""
    draw = random.Random(seed)
    return [(level + (1 - level) * math.exp(-i / 100)) * 10 ** (spread * (draw.random() - 0.5)) for i in range(steps)]


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0])
def test_sound_losses_of_small_and_large_batches_are_no_trouble(spread: float) -> None:
    for seed in range(3):
        watch = watched(sound(5_000, spread, seed))
        assert watch.trouble is None


def test_single_spikes_and_skipped_steps_are_no_trouble() -> None:
    losses = sound(400, 0.3, 0)
    losses[100::40] = [1e3] * len(losses[100::40])
    losses[130:140] = [math.nan] * 10
    losses[200:219] = [0.9] * 19
    watch = watched(losses)
    assert watch.trouble is None
    assert watch.sound is None


def test_explosion_in_the_first_steps_is_certain_after_three() -> None:
    watch = watched([1.6, 3e4, 6e4, 3e14, 1e13], [4.0, 1e5, 4e5, 8e13, 1e13])
    assert watch.trouble is not None
    assert (watch.trouble.since, watch.trouble.step) == (2, 4)
    assert watch.trouble.told() == (
        "the loss exploded at step 2: loss 1.6 before and 3e+14 at step 4, gradient norm 4 before and 8e+13"
    )
    assert watch.sound == 0


def test_moderate_explosion_is_certain_after_twenty_steps() -> None:
    watch = watched([*sound(300, 0.3, 0), *sound(30, 0.3, 1, level=1.0)])
    assert watch.trouble is not None
    assert (watch.trouble.since, watch.trouble.step) == (301, 320)
    assert watch.trouble.losses[0] < 0.2
    assert watch.sound == 299, "the loss of step 300 vouches for the weights of step 299"


def test_loss_that_creeps_up_is_noticed_by_what_it_was_at_first() -> None:
    watch = watched([1.0 * 1.02**i for i in range(200)])
    assert watch.trouble is not None
    assert watch.trouble.since == 118  # 1.02 ** 117 > 10


def test_gradient_of_exactly_zero_is_noticed() -> None:
    watch = watched([1.0] * 60, [1.0] * 30 + [0.0] * 30)
    assert watch.trouble is not None
    assert (watch.trouble.kind, watch.trouble.since, watch.trouble.step) == ("stalled", 31, 50)
    assert watched([1.0] * 60, [*([0.0] * 19), 1.0] * 3).trouble is None


@pytest.mark.parametrize("cut", [1, 10, 299, 305, 319, 325])
def test_state_goes_on_as_if_it_had_not_been_stored(cut: int) -> None:
    losses = [*sound(300, 0.3, 0), *[2.0] * 30]
    whole, first = Watch(), Watch()
    told = [whole.see(record) for record in records(losses)]
    before = [first.see(record) for record in records(losses[:cut])]
    second = Watch.of(json.loads(json.dumps(first.state())))
    after = [second.see(record) for record in records(losses[cut:], start=cut)]
    assert before + after == told
    assert second == whole
    assert Watch.of(None) == Watch()


@pytest.fixture
def exploding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of the small run are a million times as high from step 5 on."""
    honest = Learner.losses

    def losses(self: Learner, batch: Batch) -> Losses:
        result = honest(self, batch)
        factor = 1e6 if batch.positions[0] // 6 >= 4 else 1.0
        return Losses(result.loss * factor, result.mse * factor, result.vb)

    monkeypatch.setattr(Learner, "losses", losses)


@pytest.mark.usefixtures("exploding")
def test_exploded_run_says_so_keeps_the_sound_checkpoint_and_resumes_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        outcome = train(tmp_path / "whole", "training.steps=9")
    [message] = [text for text in caplog.messages if "exploded" in text]
    assert message.startswith(TOLD)
    assert "at step 7, gradient norm " in message
    assert "average (EMA) are damaged since then, and the checkpoint of step 3, before it, is kept" in message
    assert outcome.warning == message
    assert sorted(CheckpointStore(tmp_path / "whole" / "checkpoints").steps()) == [3, 6, 9]
    lines = metrics(tmp_path / "whole")
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line.get("warning") for line in lines] == [None] * 6 + ["the loss exploded at step 5"] * 3
    assert all("loss" in line for line in lines)
    for steps in (6, 9):
        train(tmp_path / "cut", f"training.steps={steps}")
    assert [line.get("warning") for line in metrics(tmp_path / "cut")] == [line.get("warning") for line in lines]
    assert sorted(CheckpointStore(tmp_path / "cut" / "checkpoints").steps()) == [3, 6, 9]


@pytest.mark.usefixtures("exploding")
def test_last_line_of_an_exploded_run_is_no_plain_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "save_curve", lambda *_: None)
    words = ["train", RECIPE, *SMALL, "training.steps=8", f"out={tmp_path}", "--no-progress"]
    for _ in range(2):  # also where it was finished before
        said = succeeds(capsys, *words)
        assert said.startswith(f"finished, but {TOLD}")
        assert said.endswith(f": 8 steps in {tmp_path} (model/, samples/)\n")  # no curve was drawn here


def test_first_steps_of_the_small_run_are_no_trouble(tmp_path: Path) -> None:
    trainer = Trainer(small_run(tmp_path, "training.steps=3"))
    assert [record.warning for record in trainer.steps()] == [None] * 3
    assert trainer.outcome.warning is None
