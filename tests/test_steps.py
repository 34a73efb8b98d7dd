"""Training as a loop: a record after each step, and a loop that may be left after any of them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import udit
from runs import finished_at, image_folder, metrics, newest, small_run, state_hash
from udit.data.batches import Batch
from udit.diffusion.objective import Losses
from udit.dist import World
from udit.errors import UserError
from udit.run.config import Run
from udit.training import preview
from udit.training.ema import EMA
from udit.training.folder import RunLock
from udit.training.learner import Learner
from udit.training.records import Outcome
from udit.training.signals import StopFlag

STEPS = 5


def run(out: Path, *words: str) -> Run:
    """Five steps, saved at the last one alone."""
    return small_run(out, f"training.steps={STEPS}", "training.save_every=100", *words)


@pytest.fixture(autouse=True)
def _no_curve() -> Iterator[None]:
    with mock.patch.object(preview, "save_curve"):  # takes as long as all else
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    with mock.patch.object(preview, "save_curve"):
        udit.train(run(out), progress=False)
    return out


def is_free(out: Path) -> bool:
    """Whether another trainer may have the folder."""
    try:
        RunLock(out).release()
    except UserError:
        return False
    return True


def assert_left_at(out: Path, step: int, unbroken: Path) -> None:
    """The loop was left after a step: it is saved, the folder is free, and the run ends as the unbroken one."""
    assert newest(out).name == f"step-{step:08d}"
    assert is_free(out)
    assert not (out / "model").exists()
    assert udit.train(run(out), progress=False) == finished_at(out, STEPS)
    assert state_hash(out) == state_hash(unbroken)
    assert metrics(out) == metrics(unbroken)


def test_train_ends_with_a_typed_outcome_and_again_finds_nothing_to_do(unbroken: Path) -> None:
    before = state_hash(unbroken)
    outcome = udit.train(run(unbroken), progress=False)
    assert outcome == Outcome(step=STEPS, finished=True, out=unbroken, signal=None)
    assert state_hash(unbroken) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        outcome.step = 6  # type: ignore[misc]


def test_every_step_is_yielded_as_the_log_has_it(tmp_path: Path) -> None:
    trainer = udit.Trainer(run(tmp_path, "training.sample_every=2"), World())
    records = []
    for record in trainer.steps():
        assert trainer.outcome == Outcome(record.step, finished=False, out=tmp_path)
        records.append(record)
    assert trainer.outcome == finished_at(tmp_path, STEPS)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record.line() for record in records] == lines
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    assert [record.step for record in records if record.val_loss is not None] == [2, 4, 5]
    for record in records:
        assert not record.skipped
        assert record.loss == pytest.approx(record.mse + record.vb)  # type: ignore[operator]
        assert record.images_per_second > 0
        assert 0 < record.waited < 1


def test_skipped_step_is_yielded_with_the_names_of_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Learner.losses

    def losses(self: Learner, batch: Batch) -> Losses:
        found = honest(self, batch)
        return Losses(found.loss * math.nan, found.mse, found.vb) if batch.positions[0] // 6 == 1 else found

    monkeypatch.setattr(Learner, "losses", losses)
    records = list(udit.Trainer(run(tmp_path), World()).steps())
    assert [record.step for record in records if record.skipped] == [2]
    assert len(records[1].skipped_samples) == 6
    assert all(name.startswith("digit ") for name in records[1].skipped_samples)
    assert math.isnan(records[1].loss)
    assert "loss" not in records[1].line()


@pytest.mark.parametrize("data", ["digits", "two reading workers"])
def test_break_saves_and_frees_the_lock(tmp_path: Path, unbroken: Path, data: str) -> None:
    out, words = tmp_path / "out", []
    if data != "digits":
        words = [*image_folder(tmp_path / "data"), "training.workers=2"]
        unbroken = tmp_path / "unbroken"
        udit.train(run(unbroken, *words), progress=False)
    for record in udit.Trainer(run(out, *words), World()).steps():
        assert not is_free(out)
        if record.step == 3:
            break
    assert newest(out).name == "step-00000003"
    assert is_free(out)
    assert udit.train(run(out, *words), progress=False) == finished_at(out, STEPS)
    assert state_hash(out) == state_hash(unbroken)
    assert metrics(out) == metrics(unbroken)


def test_exception_in_the_loop_saves_and_frees_the_lock(tmp_path: Path, unbroken: Path) -> None:
    def notebook() -> None:
        for record in udit.Trainer(run(tmp_path), World()).steps():
            if record.step == 2:
                raise KeyError("a slip of one's own")

    with pytest.raises(KeyError, match="a slip"):
        notebook()
    assert_left_at(tmp_path, 2, unbroken)


def test_closed_generator_saves_and_frees_the_lock(tmp_path: Path, unbroken: Path) -> None:
    trainer = udit.Trainer(run(tmp_path), World())
    with contextlib.closing(trainer.steps()) as steps:
        assert next(steps).step == 1
        assert not is_free(tmp_path)
    assert trainer.outcome == Outcome(1, finished=False, out=tmp_path)
    assert_left_at(tmp_path, 1, unbroken)


def test_generator_that_never_starts_touches_nothing(tmp_path: Path) -> None:
    udit.Trainer(run(tmp_path / "out"), World()).steps().close()
    assert not (tmp_path / "out").exists()


def test_the_same_trainer_goes_on_where_its_loop_was_left(tmp_path: Path, unbroken: Path) -> None:
    trainer = udit.Trainer(run(tmp_path), World())
    seen = []
    for leave in (1, 3, STEPS + 1):
        for record in trainer.steps():
            seen.append(record.step)
            if record.step == leave:
                break
    assert seen == [1, 2, 3, 4, 5]
    assert trainer.outcome == finished_at(tmp_path, STEPS)
    assert state_hash(tmp_path) == state_hash(unbroken)


def test_two_loops_do_not_share_a_folder(tmp_path: Path) -> None:
    with contextlib.closing(udit.Trainer(run(tmp_path), World()).steps()) as steps:
        next(steps)
        with pytest.raises(UserError, match="is in use by process"):
            next(udit.Trainer(run(tmp_path), World()).steps())
        assert next(steps).step == 2


# -- interrupts and errors within a step -------------------------------------------------------------------------------


def interrupt(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Raises in the fourth step, after its losses are known."""
    honest = Learner.losses

    def losses(self: Learner, batch: Batch) -> Losses:
        found = honest(self, batch)
        if batch.positions[0] // 6 == 3:
            raise error("in the fourth step")
        return found

    monkeypatch.setattr(Learner, "losses", losses)


def test_interrupt_within_a_step_saves_the_step_before(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            udit.train(run(tmp_path), progress=False)
    assert_left_at(tmp_path, 3, unbroken)


def test_interrupt_within_the_update_of_the_weights_saves_nothing(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of the fourth step and their average is not."""
    honest, updates = EMA.update, iter(range(1, 99))

    def update(self: EMA, *arguments: object) -> None:
        if next(updates) == 4:
            raise KeyboardInterrupt
        honest(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", update)
        with pytest.raises(KeyboardInterrupt):
            udit.train(run(tmp_path, "training.save_every=2"), progress=False)
    assert_left_at(tmp_path, 2, unbroken)


def test_other_error_within_a_step_saves_nothing_and_frees_the_lock(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, KeyError)
        with pytest.raises(KeyError):
            udit.train(run(tmp_path, "training.save_every=2"), progress=False)
    assert_left_at(tmp_path, 2, unbroken)


# -- signals -----------------------------------------------------------------------------------------------------------


def test_library_installs_no_signal_handler(tmp_path: Path) -> None:
    def handlers() -> list[object]:
        return [signal.getsignal(number) for number in signal.valid_signals()]

    before = handlers()
    with contextlib.closing(udit.Trainer(run(tmp_path), World()).steps(progress=True)) as steps:
        for _ in steps:
            assert handlers() == before
    udit.train(run(tmp_path), progress=False)
    assert handlers() == before


def test_stop_flag_of_a_notebook_saves_and_ends_the_loop(tmp_path: Path, unbroken: Path) -> None:
    trainer = udit.Trainer(run(tmp_path), World())
    with StopFlag() as stop:
        for record in trainer.steps(stop=stop):
            if record.step == 2:
                signal.raise_signal(signal.SIGINT)
    assert trainer.outcome == Outcome(3, finished=False, out=tmp_path, signal=signal.SIGINT)
    assert_left_at(tmp_path, 3, unbroken)


def test_signal_before_the_first_step_takes_none(tmp_path: Path) -> None:
    trainer = udit.Trainer(run(tmp_path), World())
    with StopFlag() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert list(trainer.steps(stop=stop)) == []
    assert trainer.outcome == Outcome(0, finished=False, out=tmp_path, signal=signal.SIGTERM)
    assert is_free(tmp_path)
    assert not (tmp_path / "model").exists()
