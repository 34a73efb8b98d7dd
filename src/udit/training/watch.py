"""Notices a training that has gone wrong although every loss and gradient is finite."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from udit.training.records import StepRecord

WINDOW = 50
"""Losses whose median a new one is compared with."""
SETTLED = 20
"""Losses of which a median is taken at the earliest."""
ZEROS = 20
"""Gradients of norm 0, one after another, that are a warning."""


class Limit(NamedTuple):
    """Losses that are too high for too long."""

    of_median: float
    """A loss is high above this multiple of the median of the ``WINDOW`` losses before."""
    of_first: float
    """And above this multiple of the loss of the first step, or of 1 if that is larger."""
    steps: int
    """High losses, one after another, that are a warning."""


LIMITS = (Limit(5, 10, 20), Limit(100, 100, 3))


@dataclass(frozen=True)
class Trouble:
    """What has gone wrong, with loss and gradient norm (before clipping) before and after."""

    kind: Literal["exploded", "stalled"]
    since: int
    """The step at which it began."""
    step: int
    """The step at which it was certain."""
    losses: tuple[float, float]
    """Median before it began, and the loss of ``step``."""
    grad_norms: tuple[float, float]
    """Of the last step before it began, and of ``step``."""

    @property
    def brief(self) -> str:
        """For ``metrics.jsonl``; the same at every later step."""
        what = "the loss exploded" if self.kind == "exploded" else "the gradient is 0"
        return f"{what} at step {self.since}"

    def told(self) -> str:
        """In words, e.g. "the loss exploded at step 24: 0.081 before and 1.9e+14 at step 26 (...)"."""
        losses, norms = ([f"{value:.3g}" for value in pair] for pair in (self.losses, self.grad_norms))
        return (
            f"{self.brief}: loss {losses[0]} before and {losses[1]} at step {self.step}, gradient norm {norms[0]} "
            f"before and {norms[1]}"
        )


@dataclass
class Watch:
    """Looks at each step's loss and gradient norm. A function of the steps so far: checkpoints keep its state.

    A loss is high by a ``Limit`` if it exceeds a multiple of the median of the losses before, or of the first step's
    loss (at least 1). The losses of all noising processes here are about 1 for a network that predicts 0, as most
    networks do before the first step; a sound training never stays ten times above that. It does not stay above the
    median before either: order, times and noise of the images are independent from step to step, so by chance alone a
    loss is above the median, let alone five times, with probability 1/2, and 20 times in a row with 1e-6; at five times
    the median, even with batches of one image and losses spread evenly over three decades, with 4e-12. Three losses in
    a row above 100 times the median are beyond that spread. High losses are no part of the median, so that a
    loss that stays high stays high by comparison. Steps that were skipped do not count.

    A gradient norm of exactly 0 does not occur in sound trainings; all of the network is saturated or detached then.
    """

    first: float | None = None
    """Loss of the first step."""
    losses: list[float] = field(default_factory=list)
    """The last ``WINDOW`` losses that were not high for long."""
    high: list[float] = field(default_factory=list)
    """The latest losses that are high by the first limit, one after another; at most ``WINDOW``."""
    counts: list[int] = field(default_factory=lambda: [0] * len(LIMITS))
    """Of each limit: high losses, one after another."""
    zeros: int = 0
    """Gradients of norm 0, one after another."""
    calm: tuple[int, float] | None = None
    """Step and gradient norm of the latest step that was neither high nor of norm 0."""
    trouble: Trouble | None = None
    """What went wrong first; stays."""

    @property
    def sound(self) -> int | None:
        """While something is suspicious or wrong: the newest step whose weights are known to be sound; else None.

        A step's loss is that of the weights before it, so the last calm step vouches for the weights before it.
        """
        if self.trouble is not None:
            return self.trouble.since - 2
        if self.zeros or any(self.counts):
            return self.calm[0] - 1 if self.calm else 0
        return None

    def see(self, record: StepRecord) -> bool:
        """Takes a step; returns whether it is certain now, and was not before, that something is wrong."""
        if record.skipped or self.trouble is not None:
            return False
        loss, norm = record.loss, record.grad_norm
        self.first = loss if self.first is None else self.first
        median = statistics.median(self.losses) if len(self.losses) >= SETTLED else float("inf")
        bounds = [min(limit.of_median * median, limit.of_first * max(1.0, self.first)) for limit in LIMITS]
        self.counts = [count + 1 if loss > bound else 0 for count, bound in zip(self.counts, bounds, strict=True)]
        self.zeros = self.zeros + 1 if norm == 0 else 0
        if loss > bounds[0]:
            self.high = [*self.high, loss][-WINDOW:]
        else:
            self.losses, self.high = [*self.losses, *self.high, loss][-WINDOW:], []
        exploded = any(count >= limit.steps for count, limit in zip(self.counts, LIMITS, strict=True))
        if exploded or self.zeros >= ZEROS:
            step, before = self.calm or (0, norm)
            self.trouble = Trouble(
                kind="exploded" if exploded else "stalled",
                since=step + 1,
                step=record.step,
                losses=(statistics.median(self.losses) if self.losses else self.first, loss),
                grad_norms=(before, norm),
            )
            return True
        if not self.zeros and not any(self.counts):
            self.calm = (record.step, norm)
        return False

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint's manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, state: dict[str, Any] | None) -> Watch:
        """The watch of ``state``; a new one without, e.g. in a checkpoint of an older version."""
        if state is None:
            return cls()
        values = dict(state)
        if values["trouble"] is not None:
            pairs = {key: tuple(values["trouble"][key]) for key in ("losses", "grad_norms")}
            values["trouble"] = Trouble(**{**values["trouble"], **pairs})
        if values["calm"] is not None:
            values["calm"] = tuple(values["calm"])
        return cls(**values)
