"""On a GPU what a step found is read while the next one runs. Here the CPU is made to do so, with the same results."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import metrics, newest, small_run, state_hash, train
from test_trainer import OneLine, corrupt_losses, step_of
from udit import dist
from udit.errors import RunError
from udit.training.learner import Learner
from udit.training.trainer import Trainer

SELDOM = ("training.log_every=100", "training.save_every=100", "training.steps=5")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learners that defer."""
    honest = Learner.__init__

    def init(self: Learner, *arguments: Any) -> None:
        honest(self, *arguments)
        self.defers = True

    monkeypatch.setattr(Learner, "__init__", init)


def bad_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    corrupt_losses(monkeypatch, lambda batch: torch.tensor(float("nan")) if step_of(batch) in steps else None)


def test_steps_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    words = *SELDOM, "training.log_every=3", "training.clip_norm=0.1"
    bad_at(monkeypatch, 1)
    train(tmp_path / "at once", *words)
    request.getfixturevalue("late")
    train(tmp_path / "late", *words)
    assert state_hash(tmp_path / "late") == state_hash(tmp_path / "at once")
    assert metrics(tmp_path / "late") == metrics(tmp_path / "at once")
    assert [line["step"] for line in metrics(tmp_path / "late")] == [2, 3, 5]


def test_a_report_comes_with_the_next_step_unless_something_is_due(tmp_path: Path, late: None) -> None:
    trainer = Trainer(small_run(tmp_path, *SELDOM, "training.log_every=3"), dist.World())
    taken = []
    for record in trainer.steps():
        assert trainer.learner.steps_done is not None
        taken.append((record.step, trainer.learner.steps_done))
    assert taken == [(1, 2), (2, 3), (3, 3), (4, 5), (5, 5)]


def test_leaving_the_loop_saves_the_step_that_was_begun(tmp_path: Path, late: None) -> None:
    train(tmp_path / "unbroken", *SELDOM)
    trainer = Trainer(small_run(tmp_path / "left", *SELDOM), dist.World())
    with contextlib.closing(trainer.steps()) as steps:
        for record in steps:
            if record.step == 2:
                break
    assert newest(tmp_path / "left").name == "step-00000003"
    train(tmp_path / "left", *SELDOM)
    assert state_hash(tmp_path / "left") == state_hash(tmp_path / "unbroken")


def test_three_bad_steps_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: None, one_line: OneLine, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "before", *SELDOM, "training.steps=1")
    bad_at(monkeypatch, 1, 2, 3, 4)
    with caplog.at_level(logging.WARNING), pytest.raises(RunError) as error:
        train(tmp_path / "after", *SELDOM)
    assert "3 steps in a row" in one_line(error.value)
    assert [message.split()[1] for message in caplog.messages if "skipped" in message] == ["2", "3", "4"]
    assert state_hash(tmp_path / "after") == state_hash(tmp_path / "before")


def test_optimisers_without_a_gate_are_waited_for(tmp_path: Path) -> None:
    """Muon's step cannot be undone on the device, so the host decides whether it is taken."""
    gated = [
        Trainer(small_run(tmp_path, f"training.optimizer={kind}"), dist.World()).learner.optimizer.gated
        for kind in ("adamw", "muon")
    ]
    assert gated == [True, False]
