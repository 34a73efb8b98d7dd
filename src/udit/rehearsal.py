"""What a training would cost, found out before it starts: weights, MACs, images of each class, epochs, and time."""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from dataclasses import dataclass

import numpy as np

from udit.analysis import Cost, cost
from udit.data.sources import Parts, Source, parts_of
from udit.dist import World, find_device, launched
from udit.errors import RunError, UserError
from udit.run.config import Run
from udit.run.system import SystemConfig
from udit.training.batches import batches_of
from udit.training.memory import DryRun
from udit.training.trainer import Trainer

log = logging.getLogger(__name__)
TIMED = 3
"""Steps that are timed, after one that is not: the first compiles kernels and fills caches."""
MOST = {"cpu": 2e11, "cuda": 2e14, "mps": 5e12}
"""Floating-point operations of a step up to which it is timed: some ten seconds of one core, or of a GPU."""


@dataclass(frozen=True)
class Images:
    """The images of a run."""

    total: int
    train: int
    judge: int
    test: int
    per_class: dict[str, int]
    """Training images of each class by its name; empty for an unconditional model."""


@dataclass(frozen=True)
class Rehearsal:
    """What a training would cost."""

    cost: Cost
    """Of the model."""
    images: Images | None
    """None where the data is missing, as in the next."""
    epochs: float | None
    """How often each training image is seen."""
    seconds: float | None
    """Of one step, images read: the median of ``TIMED``. None where no step was timed."""
    why_not: str | None = None
    """Why no step was timed."""
    where: str = ""
    """What a step was timed on."""


def rehearse(run: Run, found: DryRun) -> Rehearsal:
    """Counts a run's model and images, and times a few training steps; touches no run folder.

    A step is timed where there is one rank, the data is there, the memory suffices, no VAE has to be loaded, and it
    takes no more than ``MOST`` operations. Images that a step reads are decoded; the others are not.

    Args:
        run: what would be trained.
        found: its memory, of ``dry_run``.
    """
    counts = cost(run.model)
    if found.missing_data is not None:
        return Rehearsal(counts, None, None, None, "the data is missing")
    source = run.source()
    parts = parts_of(source, run.data)
    seen = run.training.steps * run.training.batch_size
    images, epochs = _counted(run, source, parts), seen / len(parts.train)
    if why := _why_not(run, found, counts):
        return Rehearsal(counts, images, epochs, None, why)
    try:
        seconds, where = _timed(run, source)
    except (UserError, RunError) as error:
        return Rehearsal(counts, images, epochs, None, str(error))
    return Rehearsal(counts, images, epochs, seconds, where=where)


def _counted(run: Run, source: Source, parts: Parts) -> Images:
    per_class = {}
    if run.model.num_classes:
        named = SystemConfig.of(run).classes
        counts = np.bincount(source.labels[parts.train], minlength=named.trained)
        per_class = {named.title(label): int(count) for label, count in enumerate(counts)}
    return Images(len(source), len(parts.train), len(parts.judge), len(parts.test), per_class)


def _why_not(run: Run, found: DryRun, counts: Cost) -> str | None:
    """Why no step is timed, None where one is."""
    if found.ranks > 1 or launched() > 1:
        return "several ranks are not timed"
    if found.shortage is not None:
        return "it would not fit into memory"
    if found.loads_vae:
        return "the VAE is not loaded for it"
    if run.text is not None:
        return "the language model is not loaded for it"
    try:
        device = find_device(run.training.device, 0)
    except UserError as error:
        return str(error)
    operations = 6 * counts.macs * run.training.batch_size  # forward, and twice that backward, each MAC two operations
    if operations > MOST.get(device.type, MOST["cpu"]):
        return f"a step takes about {operations / 1e12:,.1f} TFLOP, which is too long here"
    return None


def _timed(run: Run, source: Source) -> tuple[float, str]:
    """The median of a step's seconds, and where it ran.

    Raises:
        UserError: an image cannot be decoded.
        RunError: memory runs out.
    """
    log.info("taking %d training steps to time them", TIMED + 1)
    trainer = Trainer(run, World(device=find_device(run.training.device, 0)), source)
    trainer.learner.share(0)
    took = []
    reading = batches_of(run, source, trainer.parts.train)
    with contextlib.closing(reading) as stream:
        began = time.perf_counter()
        for step, micro_batches in zip(range(TIMED + 1), stream, strict=False):
            trainer.learner.step(step, micro_batches)
            now = time.perf_counter()
            took.append(now - began)
            began = now
    return statistics.median(took[1:] or took), trainer.world.where
