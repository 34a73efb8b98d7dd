"""What a training reports: a record after each step, and an outcome at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCK = ("images_per_second", "waited", "waiting")
"""Fields that depend on the machine's clock, not on the run."""


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did, the same on every rank; of ``Learner.step``."""

    loss: float
    mse: float
    vb: float | None
    grad_norm: float
    bad_samples: tuple[int, ...] | None
    """Samples of a skipped step, as indices into the source; None for a step that was taken."""
    signal: int
    """The signal that asked any rank to stop, or 0."""
    align: float | None = None
    """What aligns features with a vision model's; it is trained on beside the loss."""
    spike: tuple[int, ...] | None = None
    """Samples of the highest losses where loss or gradient norm exceeded its bounds; None where they did not."""


@dataclass(frozen=True)
class Timing:
    """How long one step took on this rank, in seconds."""

    waited: float
    """Until its images were there."""
    total: float


@dataclass(frozen=True)
class StepRecord:
    """One training step, as ``Trainer.steps`` yields it and ``metrics.jsonl`` keeps it."""

    step: int
    """Optimiser steps done, this one included; counts from 1."""
    lr: float
    """Learning rate of this step."""
    loss: float
    """Mean over the whole batch; NaN for a skipped step."""
    mse: float
    """Mean squared error within the loss; NaN for a skipped step."""
    vb: float | None
    """Variational bound within the loss; NaN for a skipped step, None where the loss has no such term."""
    grad_norm: float
    """Norm of all gradients before clipping."""
    images_per_second: float
    """Over all ranks, time spent waiting for images included."""
    waited: float
    """Share of the step's time, 0 to 1, that passed before its images were read."""
    skipped_samples: tuple[str, ...] = ()
    """Names of the samples without a finite loss or gradient; the weights stay as they were if there are any."""
    align: float | None = None
    """What aligns features with a vision model's, beside the loss; NaN for a skipped step, None where there is none."""
    val_loss: float | None = None
    """Of held-out images with the averaged weights, every ``training.sample_every`` steps; on rank 0 alone."""
    alarms: tuple[tuple[str, str], ...] = ()
    """What began to look wrong at this step, as (kind, one line), see ``training.alarms``; on rank 0 alone."""
    warning: str | None = None
    """What has gone wrong though all numbers are finite (``training.watch``), from then on; on rank 0 alone."""

    @classmethod
    def of(
        cls, step: int, lr: float, report: StepReport, names: Sequence[str], batch_size: int, timing: Timing
    ) -> StepRecord:
        """The record of step number ``step``; ``names`` are the source's, ``batch_size`` counts all ranks' images."""
        skipped = report.bad_samples is not None
        return cls(
            step=step,
            lr=lr,
            loss=math.nan if skipped else report.loss,
            mse=math.nan if skipped else report.mse,
            vb=math.nan if skipped and report.vb is not None else report.vb,
            grad_norm=report.grad_norm,
            images_per_second=batch_size / timing.total,
            waited=timing.waited / timing.total,
            skipped_samples=tuple(str(names[i]) for i in report.bad_samples or ()),
            align=math.nan if skipped and report.align is not None else report.align,
        )

    @property
    def skipped(self) -> bool:
        """Whether the step was skipped because a loss or gradient was not finite."""
        return bool(self.skipped_samples)

    def line(self) -> dict[str, Any]:
        """The plain values of its line of ``metrics.jsonl``; a skipped step has names in place of losses."""
        values: dict[str, Any] = {"step": self.step, "lr": self.lr}
        if self.skipped:
            values["skipped_samples"] = list(self.skipped_samples)
        else:
            values |= {"loss": self.loss, "mse": self.mse, "grad_norm": self.grad_norm}
            values |= {"vb": self.vb} if self.vb is not None else {}
            values |= {"align": self.align} if self.align is not None else {}
        values |= {"val_loss": self.val_loss} if self.val_loss is not None else {}
        values |= {"warning": self.warning} if self.warning is not None else {}
        own = {kind: text for kind, text in self.alarms if kind not in CLOCK}
        values |= {"alarms": own} if own else {}
        values |= {kind: text for kind, text in self.alarms if kind in CLOCK}
        return values | {"images_per_second": round(self.images_per_second, 1), "waited": round(self.waited, 4)}


@dataclass(frozen=True)
class Outcome:
    """How far a training has come."""

    step: int
    """Optimiser steps done, earlier calls included."""
    finished: bool
    """Whether the run's last step is done and its model folder is written."""
    out: Path
    """The run folder."""
    signal: int | None = None
    """The signal that asked it to stop, if one did."""
    warning: str | None = None
    """What has gone wrong though all numbers are finite, e.g. a loss that exploded; on rank 0 alone."""
