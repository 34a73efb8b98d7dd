"""A dry run counts model, images and epochs, and times a step without touching the run folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import succeeds
from runs import RECIPE, SMALL, image_folder, small_run
from udit import rehearsal
from udit.analysis import cost
from udit.cli.train import duration
from udit.data.sources import parts_of
from udit.rehearsal import rehearse
from udit.run.config import Run
from udit.training.memory import DryRun, Memory, dry_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A small run on 24 images of two classes."""
    return small_run(tmp_path / "run", *image_folder(tmp_path / "images"), "training.steps=40")


def test_numbers_are_those_of_the_run(run: Run) -> None:
    found = rehearse(run, dry_run(run))
    parts = parts_of(run.source(), run.data)
    assert found.cost == cost(run.model)
    assert (found.images.train, found.images.judge, found.images.test) == tuple(
        len(part) for part in (parts.train, parts.judge, parts.test)
    )
    assert sum(found.images.per_class.values()) == len(parts.train)
    assert found.epochs == 40 * 6 / len(parts.train)
    assert 0 < found.seconds < 60
    assert not run.out.exists()


def test_command_prints_them_as_comments(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.root={tmp_path / 'images'}", "data.kind=folder", "data.size=8", "data.channels=1"]
    said = succeeds(capsys, "train", RECIPE, *SMALL, *words, f"out={run.out}", "training.steps=40", "--dry-run")
    kept = len(parts_of(run.source(), run.data).train)
    assert f"# of each class: cat {kept // 2}, dog {kept // 2}\n" in said
    assert f"# 40 steps of 6 images: 240 images, {240 / kept:.1f} epochs\n" in said
    assert f"# model: {cost(run.model).parameters:,} weights (" in said
    assert re.search(r"^# time: \d\S* s for a step on cpu with 1 thread, so about \S+ \w+ in all", said, re.MULTILINE)


NONE = Memory(6, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (DryRun(NONE, 2, missing_data=None, loads_vae=False), "several ranks are not timed"),
        (DryRun(NONE, 1, missing_data=None, loads_vae=True), "the VAE is not loaded for it"),
        (DryRun(NONE, 1, missing_data=None, loads_vae=False, shortage="short"), "it would not fit into memory"),
        (DryRun(NONE, 1, missing_data="no folder", loads_vae=False), "the data is missing"),
    ],
)
def test_what_cannot_be_timed_says_why(run: Run, found: DryRun, wanted: str) -> None:
    got = rehearse(run, found)
    assert (got.seconds, got.why_not) == (None, wanted)
    assert (got.images is None) == (found.missing_data is not None)


def test_large_step_is_not_timed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rehearsal.MOST, "cpu", 1e3)
    assert "which is too long here" in rehearse(run, dry_run(run)).why_not


def test_damaged_image_is_told_in_place_of_a_time(run: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"torn")
    found = rehearse(run, dry_run(run))
    assert found.seconds is None
    assert "cannot be read" in found.why_not


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.2, "3 seconds"), (60, "1.0 minutes"), (5400, "1.5 hours"), (2e5, "2.3 days")]
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
