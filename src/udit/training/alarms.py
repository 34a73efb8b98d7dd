"""What may go wrong in a training while its losses stay finite and low: each is one line, and stops nothing."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from udit.training.records import StepRecord

WINDOW = 50
"""Steps whose median a new one is compared with."""
SETTLED = 20
"""Steps of which a median is taken at the earliest."""
SPIKE_FACTOR, SPIKE_DEVIATIONS = 5.0, 8.0
"""A spike is above this multiple of the median, and by this many standard deviations of the logarithms."""
DRIFT, RISES = 0.5, 3
"""Relative distance of average and weights that is too much, where it has risen at so many previews in a row."""
WAITING, WAITING_STEPS = 0.1, 100
"""Share of the time of so many steps, spent waiting for images, that is too much."""
GRID_EXCESS = math.log(3)
"""How far samples may exceed training images in log power at the frequencies of a patch's side."""
GRID_FROM = 500
"""The first step of which that is asked: the samples of an untrained network show its patches."""

Kind = Literal["spike", "ema-frozen", "ema-drift", "patch-grid", "overfitting", "waiting"]


class Alarm(NamedTuple):
    """One of them, at one step."""

    kind: Kind
    text: str


class Bounds(NamedTuple):
    """Loss and gradient norm (before clipping) above which a step is a spike."""

    loss: float = math.inf
    grad_norm: float = math.inf


class Seen(NamedTuple):
    """What a preview has found."""

    step: int
    val_loss: float
    loss: float
    """Mean training loss since the preview before."""


@dataclass
class Alarms:
    """Looks at each step and at each preview. A function of the steps so far: checkpoints keep its state.

    A spike is judged by the logarithms of the last ``WINDOW`` values, with the median absolute deviation for their
    spread, so that a batch of one, whose losses span decades, has a wide bound. Over the digits' and Fashion-MNIST's
    recipes the highest values were 1.3 (loss) and 2.5 (norm) times the median, at most 5.3 deviations.
    """

    last: int = 0
    """The newest step that was seen."""
    losses: list[float] = field(default_factory=list)
    """Of the last ``WINDOW`` steps, and one."""
    norms: list[float] = field(default_factory=list)
    since: list[float] = field(default_factory=list)
    """Losses since the last preview."""
    best: Seen | None = None
    """The preview of the lowest validation loss."""
    validation: list[float] = field(default_factory=list)
    """The last three."""
    sums: tuple[float, float] | None = None
    """Of the weights and of their average, at the last preview."""
    distances: list[float] = field(default_factory=list)
    """Of the average from the weights, relative to the weights' norm, at the last previews."""
    grids: int = 0
    """Previews with a patch's grid, one after another."""
    waits: list[float] = field(default_factory=list)
    """Shares of the last steps' time; of this process alone."""
    told: set[Kind] = field(default_factory=set)
    """What goes on, and is not told again until it has ended."""

    def bounds(self, step: int) -> Bounds:
        """What a step is compared with; infinite until there are enough steps.

        The step just before is left out: on a GPU it is not read yet when the next one begins.
        """
        seen = -1 if self.last == step - 1 else None
        return Bounds(_bound(self.losses[:seen][-WINDOW:]), _bound(self.norms[:seen][-WINDOW:]))

    def step(self, record: StepRecord, worst: Sequence[str] | None, done: str = "") -> list[Alarm]:
        """Takes a step.

        Args:
            record: of the step.
            worst: names of the samples with the highest losses, of a spike; None where it is none.
            done: about the spike, e.g. "the weights are as before it".
        """
        found = []
        if worst is not None:
            bounds = self.bounds(record.step)
            is_loss = record.loss > bounds.loss
            name, value, values = (
                ("loss", record.loss, self.losses) if is_loss else ("gradient norm", record.grad_norm, self.norms)
            )
            text = (
                f"{name} {value:.3g} at step {record.step}, median of the steps before {statistics.median(values):.3g}"
            )
            found.append(Alarm("spike", f"{text}; highest losses: {', '.join(worst)}{done}"))
        if not record.skipped:
            self.last = record.step
            self.losses = [*self.losses, record.loss][-WINDOW - 1 :]
            self.norms = [*self.norms, record.grad_norm][-WINDOW - 1 :]
            self.since.append(record.loss)
        self.waits = [*self.waits, record.waited][-WAITING_STEPS:]
        share = statistics.fmean(self.waits)
        wrong = len(self.waits) == WAITING_STEPS and share > WAITING
        remedy = "raise training.workers, or encode once: udit encode"
        found += self._once("waiting", wrong, f"{share:.0%} of the time passes before the images are read; {remedy}")
        return found

    @torch.no_grad()
    def preview(
        self, step: int, val_loss: float | None, weights: nn.Module, average: nn.Module, grid: float | None
    ) -> list[Alarm]:
        """Takes a preview.

        Args:
            step: of the weights.
            val_loss: of held-out images, if there are any.
            weights: the network.
            average: the same with averaged weights.
            grid: ``grid_excess`` of samples less that of training images; None where there is nothing to measure.
        """
        found = self.overfitting(step, val_loss)
        pairs = list(zip(weights.parameters(), average.parameters(), strict=True))
        sums = (_sum(p for p, _ in pairs), _sum(p for _, p in pairs))
        frozen = self.sums is not None and sums[0] != self.sums[0] and sums[1] == self.sums[1]
        text = "the averaged (EMA) weights are what they were at the last preview, and the weights are not"
        found += self._once("ema-frozen", frozen, f"{text}; samples show an older model")
        self.sums = sums
        apart = math.sqrt(math.fsum(float((p - q).double().square().sum()) for p, q in pairs))
        distance = apart / (math.sqrt(math.fsum(float(p.double().square().sum()) for p, _ in pairs)) or 1.0)
        self.distances = [*self.distances, distance][-RISES - 1 :]
        rises = len(self.distances) == RISES + 1 and self.distances == sorted(set(self.distances))
        text = (
            f"averaged (EMA) weights differ from the weights by {distance:.0%} of their norm, and more at each preview"
        )
        found += self._once(
            "ema-drift", rises and distance > DRIFT, f"{text}; lower training.lr, or a shorter training.ema_decay"
        )
        self.grids = self.grids + 1 if grid is not None and grid > GRID_EXCESS and step >= GRID_FROM else 0
        text = (
            f"samples have {math.exp(grid or 0):.1f} times the power of training images at the frequencies of a patch"
        )
        found += self._once(
            "patch-grid", self.grids >= 2, f"{text}, at two previews: a grid shows; train on, or lower lr"
        )
        return found

    def overfitting(self, step: int, val_loss: float | None) -> list[Alarm]:
        """Takes the validation loss of a preview, if there is one."""
        if val_loss is None or not self.since:
            return []
        now = Seen(step, val_loss, statistics.fmean(self.since))
        self.since = []
        self.validation = [*self.validation, val_loss][-3:]
        if self.best is None or val_loss < self.best.val_loss:
            self.best = now
        wrong = rising(self.validation, self.best.val_loss) and now.loss < self.best.loss
        text = f"validation loss rises ({self.best.val_loss:.4g} at step {self.best.step}, now {val_loss:.4g})"
        rest = f"while training loss falls ({self.best.loss:.4g}, now {now.loss:.4g})"
        remedy = "the network learns its images by heart: more images, dropout, or fewer steps"
        return self._once("overfitting", wrong, f"{text} {rest}; {remedy}")

    def _once(self, kind: Kind, wrong: bool, text: str) -> list[Alarm]:
        """The alarm, where it begins."""
        new = wrong and kind not in self.told
        self.told = self.told | {kind} if wrong else self.told - {kind}
        return [Alarm(kind, text)] if new else []

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint's manifest; what depends on this process's clock is left out."""
        values = dataclasses.asdict(self)
        del values["waits"]
        return values | {"told": sorted(self.told - {"waiting"}), "best": self.best and list(self.best)}

    @classmethod
    def of(cls, state: dict[str, Any] | None) -> Alarms:
        """Those of ``state``; new ones without, e.g. in a checkpoint of an older version."""
        if state is None:
            return cls()
        best, sums = state["best"], state["sums"]
        return cls(
            **state | {"told": set(state["told"]), "best": best and Seen(*best), "sums": sums and (sums[0], sums[1])}
        )


def rising(values: Sequence[float], lowest: float) -> bool:
    """Whether the last three validation losses rise, all of them by 2 % above the lowest one."""
    return len(values) >= 3 and values[-1] > values[-2] > values[-3] > 1.02 * lowest


def grid_excess(images: Tensor, period: int) -> float | None:
    """How far the power at the frequencies of a grid stands out from that of the frequencies beside them.

    Args:
        images: [N, C, H, W], of any range.
        period: pixels between the lines of the grid.

    Returns:
        Mean natural logarithm of power over that of the frequencies beside, over both axes and all harmonics; 0 for
        images without a grid. None where the images have fewer than four periods, or the period is 1.
    """
    x = images.double()
    found = []
    for axis in (2, 3):
        size = x.shape[axis]
        if period < 2 or size % period or size < 4 * period:
            return None
        power = (x - x.mean(axis, keepdim=True)).movedim(axis, -1).flatten(0, -2).div(255)
        spectrum = _power(power)
        base = size // period
        for line in range(base, size // 2 + 1, base):
            beside = [f for f in (line - 2, line - 1, line + 1, line + 2) if 0 < f < len(spectrum) and f % base]
            found.append(math.log(spectrum[line]) - statistics.fmean(math.log(spectrum[f]) for f in beside))
    return statistics.fmean(found)


def _power(rows: Tensor) -> list[float]:
    """Mean power of rows [R, n] at each frequency, never 0."""
    values: list[float] = (torch.fft.rfft(rows).abs().square().mean(0) + 1e-9).tolist()
    return values


def _bound(values: Sequence[float]) -> float:
    """Of the last values: the median times ``SPIKE_FACTOR``, or more where they vary."""
    if len(values) < SETTLED or min(values) <= 0:
        return math.inf
    logs = [math.log(value) for value in values]
    median = statistics.median(logs)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in logs)
    return math.exp(median + max(math.log(SPIKE_FACTOR), SPIKE_DEVIATIONS * deviation))


def _sum(tensors: Any) -> float:
    return math.fsum(float(tensor.double().sum()) for tensor in tensors)
