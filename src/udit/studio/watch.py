"""A run while it trains: its log read as it grows, how far it is, and its sample grids."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from udit.diagnosis import run as diagnosis
from udit.diagnosis.finding import Finding
from udit.run.config import Run
from udit.store import read_run_config

QUIET = 60.0
"""Seconds without a line in the log after which a run counts as stopped, unless a step takes longer."""
POINTS = 400
"""Most points of a curve."""


@dataclass
class Log:
    """``metrics.jsonl``, of which each reading takes what is new; a log that was cut back is read from its start."""

    path: Path
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """One for each of ``steps``; skipped steps have none."""
    held_out: list[tuple[int, float]] = field(default_factory=list)
    """Step and validation loss."""
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=diagnosis.RECENT))
    """The newest lines."""
    changed: float = 0.0
    """When it was last written."""
    _read: int = 0
    _inode: int = 0

    def read(self) -> bool:
        """Takes in what is new; says whether anything was."""
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            return False
        if facts.st_size < self._read or facts.st_ino != self._inode:
            self.__init__(self.path)  # type: ignore[misc]
            self._inode = facts.st_ino
        if facts.st_size == self._read:
            return False
        self.changed = facts.st_mtime
        with self.path.open("rb") as stream:
            stream.seek(self._read)
            whole, newline, _ = stream.read().rpartition(b"\n")  # the last line may be half written
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            self._take(line)
        return bool(newline)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            step = int(values["step"])
        except (ValueError, KeyError, TypeError):
            return
        self.recent.append(values)
        loss = values.get("loss")
        if isinstance(loss, float | int) and math.isfinite(loss):
            self.steps.append(step)
            self.losses.append(float(loss))
        if isinstance(held_out := values.get("val_loss"), float | int) and math.isfinite(held_out):
            self.held_out.append((step, float(held_out)))

    def curve(self) -> list[tuple[float, float]]:
        """Step and training loss, each the mean of neighbouring steps, ``POINTS`` at most."""
        size = max(1, -(-len(self.steps) // POINTS))
        starts = range(0, len(self.steps), size)
        return [(_mean(self.steps[i : i + size]), _mean(self.losses[i : i + size])) for i in starts]


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    state: str
    """training, stopped, finished, or not started."""
    step: int
    steps: int
    images_per_second: float | None
    remaining: float | None
    """Seconds, while it trains."""

    def __str__(self) -> str:
        text = f"{self.state}: step {self.step:,} of {self.steps:,}"
        if self.images_per_second is not None:
            text += f", {self.images_per_second:,.0f} images a second"
        return text + (f", about {duration(self.remaining)} to go" if self.remaining is not None else "")


class Watch:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Log(folder / "metrics.jsonl")

    @property
    def run(self) -> Run:
        """Its ``run.yaml``, which changes when it is resumed with other lengths or intervals.

        Raises:
            UserError: it is gone or unreadable.
        """
        return read_run_config(self.folder)

    def progress(self) -> Progress:
        """How far it is; read the log first."""
        training, recent = self.run.training, list(self.log.recent)
        if not recent:
            return Progress("not started", 0, training.steps, None, None)
        step = int(recent[-1]["step"])
        rates = [line["images_per_second"] for line in recent if line.get("images_per_second")]
        rate = median(rates) if rates else None
        seconds = training.batch_size * training.log_every / rate if rate else 0.0
        if step >= training.steps and (self.folder / "model").is_dir():
            return Progress("finished", step, training.steps, rate, None)
        if time.time() - self.log.changed > max(QUIET, 5 * seconds):
            return Progress("stopped", step, training.steps, None, None)
        left = (training.steps - step) * training.batch_size / rate if rate else None
        return Progress("training", step, training.steps, rate, left)

    def findings(self) -> Iterator[Finding]:
        """What is odd, as ``udit doctor RUN`` says it, of what is quick to see."""
        run, recent = self.run, list(self.log.recent)
        for findings in (
            diagnosis.training(recent) if recent else (),
            diagnosis.data(self.folder, run),
            diagnosis.averages(run, recent),
        ):
            yield from (finding for finding in findings if finding.verdict != "ok")

    def grids(self) -> list[tuple[int, Path]]:
        """Step and file of the sample grids, in order."""
        found = []
        for path in (self.folder / "samples").glob("step-*.png"):
            digits = path.stem.removeprefix("step-")
            if digits.isdecimal():
                found.append((int(digits), path))
        return sorted(found)


def duration(seconds: float) -> str:
    """A length of time in words of one or two units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def _mean(values: list[int] | list[float]) -> float:
    return sum(values) / len(values)
