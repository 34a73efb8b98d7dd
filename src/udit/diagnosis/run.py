"""Checks of a run folder: what its log, checkpoints and scores say that nobody may have looked at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from udit.checkpoint import CheckpointStore
from udit.diagnosis.finding import Finding
from udit.errors import UserError
from udit.evaluation.report import Report
from udit.run.config import Run
from udit.store import read_run_config
from udit.training.alarms import rising
from udit.training.folder import NAMES

TAIL = 4 << 20
"""Bytes of ``metrics.jsonl`` that are read, from its end: some 25,000 steps."""
RECENT = 200
"""Steps that "now" means."""
WAITING = 0.1
"""Share of a step's time spent waiting for images above which reading them is the bottleneck."""
EPOCHS = 1000
"""Passes over the data after which a generator is likely to know it by heart; the digits' recipe makes 29."""
SHORTER = 20
"""Share of a training that a suggested average spans, as one in so many: half of the longest that it can span."""
FEW = 20
"""Images of a class below which it can hardly be learnt."""


def check_run(folder: Path) -> Iterator[Finding]:
    """All findings on a run folder.

    Raises:
        UserError: it is none.
    """
    run = read_run_config(folder)
    lines = read_tail(folder / "metrics.jsonl")
    yield from progress(folder, run, lines)
    yield from training(lines)
    yield from data(folder, run)
    yield from averages(run, lines)
    yield from scores(folder, run.model.num_classes)


def read_tail(path: Path) -> list[dict[str, Any]]:
    """The newest lines of ``metrics.jsonl``; none if there is no file. A line that is no JSON is passed over."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # cut by the tail's beginning, or being written
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


def progress(folder: Path, run: Run, lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """How far it is, what is saved, and whether the next checkpoint fits on the disk."""
    store = CheckpointStore(folder / "checkpoints")
    newest = store.newest(aside=False)
    saved = newest.step if newest else 0
    logged = lines[-1]["step"] if lines else 0
    total = run.training.steps
    text = f"step {logged:,} of {total:,}, saved at step {saved:,}"
    if logged > saved and not newest:
        yield Finding("note", "progress", text, f"the first checkpoint is due at step {run.training.save_every:,}")
    else:
        yield Finding("ok", "progress", text)
    damaged = sorted(path.name for path in (folder / "checkpoints").glob("*damaged*"))
    if damaged:
        yield Finding(
            "wrong", "checkpoint", f"{', '.join(damaged)} did not verify and was set aside", "look at the disk"
        )
    if newest is not None and saved < total:
        size = sum(path.stat().st_size for path in newest.path.iterdir())
        free = shutil.disk_usage(folder).free
        if free < size:
            room = f"a checkpoint takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            yield Finding("wrong", "disk", room, f"make room on the disk of {folder}")


def training(lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """What training has warned of, skipped steps, and time spent waiting for images."""
    recent = lines[-RECENT:]
    if not recent:
        yield Finding("note", "log", "no step is logged yet")
        return
    waited = fmean(line.get("waited", 0.0) for line in recent)
    if waited > WAITING:
        yield Finding(
            "slow",
            "data",
            f"{waited:.0%} of a step passes before its images are read",
            "raise training.workers, or encode once: udit encode",
        )
    if warning := recent[-1].get("warning"):
        yield Finding("wrong", "training", warning, "start a new run with a lower training.lr, or training.clip_norm=1")
    skipped = [line["step"] for line in lines if "skipped_samples" in line]
    if skipped:
        names = next(line["skipped_samples"] for line in reversed(lines) if "skipped_samples" in line)
        yield Finding(
            "note",
            "steps",
            f"{len(skipped)} skipped for a loss that was not finite, the last at step {skipped[-1]:,}",
            f"look at {names[0]!r}, and at training.lr",
        )
    yield from _validation([line for line in lines if "val_loss" in line])


def _validation(lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    values = [line["val_loss"] for line in lines]
    if len(values) >= 4 and rising(values, min(values)):
        best = min(lines, key=lambda line: line["val_loss"])
        yield Finding(
            "note",
            "validation",
            f"its loss rises, and was lowest at step {best['step']:,}",
            "more images, dropout, or fewer steps: the network learns its images by heart",
        )


def data(folder: Path, run: Run) -> Iterator[Finding]:
    """Whether the images are enough for the steps, and for the classes."""
    try:
        with (folder / NAMES).open("rb") as stream:
            count = sum(1 for _ in stream)
    except FileNotFoundError:
        return
    classes = run.model.num_classes
    if classes and count < FEW * classes:
        text = f"{count:,} for {classes:,} classes, {count / classes:.0f} each"
        yield Finding("note", "images", text, "add some, or start from a trained model: init_from")
    epochs = run.training.steps * run.training.batch_size / max(1, count)
    if epochs > EPOCHS:
        text = f"{count:,}, each read {epochs:,.0f} times by the end"
        yield Finding("note", "images", text, "add some, or fewer steps; `udit eval` measures what is memorised")


def averages(run: Run, lines: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Whether the average that samples are drawn with is one over the steps that the decay asks for (``decay_at``)."""
    done, span = lines[-1]["step"] if lines else 0, 1 / (1 - run.training.ema_decay)
    steps = max(run.training.steps, done)
    if done and span > steps:
        shorter = 1 - float(f"{min(1.0, SHORTER / steps):.1g}")
        yield Finding(
            "note",
            "EMA",
            f"training.ema_decay spans {span:,.0f} steps and the training has {steps:,}: the average spans a ninth of "
            "the steps done instead",
            f"more steps; for a shorter average e.g. training.ema_decay={shorter:.10g}, or several: "
            "training.posthoc_ema",
        )


def scores(folder: Path, classes: int) -> Iterator[Finding]:
    """What the newest evaluation says: images learnt by heart, and classes that are not followed."""
    path = folder / "evaluation" / "metrics.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        report = Report.read(path, values["protocol"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        report = None
    if report is None:
        if not path.is_file():
            yield Finding("note", "scores", "none yet", f"udit eval {folder}")
        return
    error = 1.96 * (report.memorised * (1 - report.memorised) / report.num_samples) ** 0.5
    if report.memorised - error > 2 * report.memorised_real:
        yield Finding(
            "wrong",
            "scores",
            f"{report.memorised:.1%} of {report.num_samples:,} samples are close to a training image, "
            f"and {report.memorised_real:.1%} of real test images",
            "it repeats its images: train it less, or on more",
        )
    if report.judge_warning:
        yield Finding("note", "scores", report.judge_warning)
    if report.agreement_interval[0] <= 1 / classes:
        text = f"class agreement {report.agreement:.1%} is that of chance (1 of {classes})"
        yield Finding("note", "scores", text, "train longer, or raise sampling.guidance")
    yield Finding("ok", "scores", f"Fréchet distance {report.distance:.3f}, class agreement {report.agreement:.1%}")
