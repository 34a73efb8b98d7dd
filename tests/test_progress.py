"""Progress is a bar in a terminal, and a plain line now and then elsewhere."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runs import RECIPE, SMALL, environment
from udit import progress
from udit.cli import main
from udit.progress import progress_bar, progress_shown
from udit.training import preview


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time that progress sees, in seconds; to be changed."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return iter([now]).__next__()  # type: ignore[return-value]


def test_lines_come_after_ten_seconds_and_then_ever_rarer(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    at = []
    with progress_bar(1_000, "sample", "step") as bar:
        for second in range(1, 301):
            clock[0] = 100.0 + second
            bar.update()
            if line := capsys.readouterr().err:
                at.append((second, line))
    assert [second for second, _ in at] == [10, 30, 70, 130, 190, 250]
    assert at[0][1] == "udit: sample: step 10 of 1,000, 1 steps/s, 16:30 left\n"
    assert at[-1][1] == "udit: sample: step 250 of 1,000, 1 steps/s, 12:30 left\n"


def test_line_of_a_resumed_training_counts_its_own_steps_only(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(20_000, "train", "step", initial=5_000) as bar:
        clock[0] += 20
        bar.set_postfix({"loss": "0.0812", "images/s": "450"}, refresh=False)
        bar.update(10)
    assert capsys.readouterr().err == "udit: train: step 5,010 of 20,000, loss 0.0812, images/s 450, 8:19:40 left\n"


def test_line_without_a_total_has_no_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(None, "streaming train", "image") as bar:
        clock[0] += 10
        bar.update(25)
    assert capsys.readouterr().err == "udit: streaming train: image 25, 2.5 images/s\n"


def test_hidden_progress_says_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def job(show: bool = True) -> str:
        with progress_bar(10, "judge", "step", show=show) as bar:
            clock[0] += 60
            bar.update()
        return capsys.readouterr().err

    assert job(show=False) == ""
    with progress_shown(False):
        assert job() == ""
        with progress_shown(True):
            assert job() == "", "what is hidden from outside stays so"
    assert job() != ""
    monkeypatch.setenv("RANK", "1")
    assert job() == "", "one of a launcher's processes is enough"


BAR = """
import time
from udit import progress
from udit.cli import main
progress.FIRST = 0
with progress.progress_bar(4, "train", "step") as bar:
    for _ in range(4):
        bar.update()
"""


@pytest.mark.parametrize("columns", [0, 80])
def test_terminal_shows_a_bar_if_it_has_a_width(columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    ended = subprocess.run([sys.executable, "-c", BAR], env=environment(), stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert ended.returncode == 0
    assert ("udit: train: step 1 of 4, " in shown) == (columns == 0)
    assert ("100%" in shown) == (columns == 80)


def test_training_without_a_terminal_says_what_it_does_and_how_far_it_is(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(preview, "save_curve", lambda *_: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    shown = {}
    for name, more in (("loud", ()), ("quiet", ("--no-progress",))):
        with pytest.raises(SystemExit), caplog.at_level(logging.INFO):
            main(["train", RECIPE, *SMALL, "training.steps=2", f"out={tmp_path / name}", *more])
        shown[name] = capsys.readouterr().err
    assert "udit: train: step 1 of 2, loss " in shown["loud"]
    assert ", images/s " in shown["loud"]
    assert " left\n" in shown["loud"]
    assert "train: step" not in shown["quiet"]
    assert "decoding" not in shown["quiet"]
    first, second = caplog.messages[:2]
    assert first == f"new run in {tmp_path / 'loud'}"
    assert second == (
        "training U-DiT, 0.01 million weights, on 907 of 1,797 images of digits (1x8x8), 2 steps of 6 images, in "
        f"float32 on cpu with 1 thread; log: {tmp_path / 'loud' / 'metrics.jsonl'}"
    )
