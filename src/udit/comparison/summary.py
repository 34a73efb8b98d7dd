"""What the members of a comparison say: means over seeds, differences between systems, and what separates.

An interval of a system is Student's, over seeds: trainings differ more between seeds than samples of one training do.
Two systems are compared by their differences seed by seed, which had the same images, times and noise in training and
the same noise in sampling; they separate where the interval of the mean difference leaves out zero. With one seed there
is the evaluator's interval of the samples alone, and two systems separate where theirs do not meet.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence

from udit.comparison.config import Comparison, Yardstick
from udit.comparison.evaluator import LOWER_IS_BETTER
from udit.comparison.records import Member, Point
from udit.record import Record
from udit.spec.base import Spec

STUDENT_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
"""Quantile 0.975 of Student's t with 1, 2, ... degrees of freedom; beyond, the normal distribution's is close."""
NORMAL_975 = 1.960


class Estimate(Spec):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int
    """How many trainings it is of; of 1 the interval is that of its samples alone."""

    @property
    def leaves_out_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


class Curve(Spec):
    """A system's score at the fractions of its training."""

    fractions: tuple[float, ...]
    steps: tuple[int, ...]
    macs: tuple[float, ...]
    """Of the training, the mean over seeds."""
    seconds: tuple[float, ...]
    """Of the training, the mean over seeds."""
    estimates: tuple[Estimate, ...]


class Pair(Spec):
    """Two systems and how they differ at the end of the training."""

    first: str
    second: str
    difference: Estimate
    """Of ``first`` less ``second``."""
    separates: bool
    """Whether the interval of the difference leaves out zero; with one seed, whether those of samples do not meet."""


class Standing(Spec):
    """A system in the table of a budget."""

    system: str
    final: Estimate
    same_seconds: Estimate | None
    """Interpolated at the seconds that all systems have trained for; None where a first score is later than that."""
    reached: float | None
    """Steps after which the mean score is ``reach``; None where it is not, or not asked for."""
    behind: bool | None
    """Whether it separates from the first of the table; None of the first itself."""


class Panel(Spec):
    """One budget: who is ahead, by one score."""

    amount: float
    score: str
    curves: dict[str, Curve]
    standings: tuple[Standing, ...]
    """The best first."""
    pairs: tuple[Pair, ...]
    seconds: float | None
    """Those at which ``same_seconds`` are."""
    real: float | None
    """What real images get."""

    @property
    def verdict(self) -> str:
        """Who wins, in one sentence."""
        first = self.standings[0].system
        level = [one.system for one in self.standings[1:] if not one.behind]
        if len(self.standings) == 1:
            return f"{first} is alone."
        few = " With one seed, these are intervals of samples alone." if self._one_seed else ""
        if not level:
            return f"{first} wins; its difference from every other system leaves out zero.{few}"
        return f"{first} is ahead; the intervals do not separate it from {', '.join(level)}.{few}"

    @property
    def _one_seed(self) -> bool:
        return any(pair.difference.seeds < 2 for pair in self.pairs)


class Summary(Record):
    """A comparison in numbers."""

    budget: Yardstick
    panels: tuple[Panel, ...]
    """One for each amount and score: those of the comparison's own score first."""


def summarise(comparison: Comparison, members: Sequence[Member]) -> Summary:
    """The scores of members that may be on one axis."""
    names = list(dict.fromkeys([comparison.score, *members[0].points[-1].scores]))
    amounts = [amount for amount in comparison.amounts if any(one.size.amount == amount for one in members)]
    panels = [_panel(comparison, members, amount, name) for name in names for amount in amounts]
    return Summary(budget=comparison.budget, panels=tuple(panels))


def _panel(comparison: Comparison, members: Sequence[Member], amount: float, name: str) -> Panel:
    lower = name in LOWER_IS_BETTER
    of: dict[str, list[Member]] = {}
    for system in comparison.systems:
        if own := [one for one in members if one.size.amount == amount and one.system == system.name]:
            of[system.name] = own
    curves = {system: _curve(own, name) for system, own in of.items()}
    seconds = min(curve.seconds[-1] for curve in curves.values())
    ranked = sorted(of, key=lambda system: curves[system].estimates[-1].value * (1 if lower else -1))
    pairs = {pair: _pair(*pair, of, name) for pair in itertools.combinations(ranked, 2)}
    reach = comparison.reach if name == comparison.score else None
    standings = tuple(
        Standing(
            system=system,
            final=curves[system].estimates[-1],
            same_seconds=_at_seconds(of[system], name, seconds),
            reached=None if reach is None else _reached(curves[system], reach, lower=lower),
            behind=pairs[ranked[0], system].separates if place else None,
        )
        for place, system in enumerate(ranked)
    )
    together = all(one.same_seconds is not None for one in standings)
    return Panel(
        amount=amount,
        score=name,
        curves=curves,
        standings=standings,
        pairs=tuple(pairs.values()),
        seconds=seconds if together else None,
        real=members[0].evaluator.real.get(name),
    )


def _curve(members: Sequence[Member], name: str) -> Curve:
    columns = list(zip(*(one.points for one in members), strict=True))
    return Curve(
        fractions=tuple(column[0].fraction for column in columns),
        steps=tuple(column[0].step for column in columns),
        macs=tuple(statistics.fmean(point.macs for point in column) for column in columns),
        seconds=tuple(statistics.fmean(point.seconds for point in column) for column in columns),
        estimates=tuple(_of_points(column, name) for column in columns),
    )


def _of_points(points: Sequence[Point], name: str) -> Estimate:
    """The mean over seeds; of one, with the interval of its samples."""
    scores = [point.scores[name] for point in points]
    if len(scores) == 1:
        return Estimate(value=scores[0].value, low=scores[0].low, high=scores[0].high, seeds=1)
    return student([score.value for score in scores])


def student(values: Sequence[float]) -> Estimate:
    """The mean of independent values with Student's 95 % interval (1908); at least two."""
    mean, count = statistics.fmean(values), len(values)
    quantile = STUDENT_975[count - 2] if count - 2 < len(STUDENT_975) else NORMAL_975
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return Estimate(value=mean, low=mean - half, high=mean + half, seeds=count)


def _pair(first: str, second: str, of: dict[str, list[Member]], name: str) -> Pair:
    """The difference of two systems by the seeds that both have."""
    ends = [{one.seed: one.points[-1] for one in of[system]} for system in (first, second)]
    common = sorted(ends[0].keys() & ends[1].keys())
    scores = [(ends[0][seed].scores[name], ends[1][seed].scores[name]) for seed in common]
    if len(common) > 1:
        difference = student([own.value - other.value for own, other in scores])
        return Pair(first=first, second=second, difference=difference, separates=difference.leaves_out_zero)
    if not common:  # different seeds are finished of either; what they have in common comes later
        own, its = (_of_points([one.points[-1] for one in of[system]], name) for system in (first, second))
    else:
        own, its = (Estimate(value=s.value, low=s.low, high=s.high, seeds=1) for s in scores[0])
    difference = Estimate(
        value=own.value - its.value, low=own.low - its.high, high=own.high - its.low, seeds=len(common)
    )
    known = own.low < own.high and its.low < its.high
    return Pair(first=first, second=second, difference=difference, separates=known and difference.leaves_out_zero)


def _at_seconds(members: Sequence[Member], name: str, seconds: float) -> Estimate | None:
    """The score after some seconds, on the line between the two nearest, over the logarithm of time.

    With one seed the ends of the interval are interpolated as the value is.
    """
    values = [at_seconds(one, seconds, lambda point: point.scores[name].value) for one in members]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    if len(known) > 1:
        return student(known)
    low = at_seconds(members[0], seconds, lambda point: point.scores[name].low)
    high = at_seconds(members[0], seconds, lambda point: point.scores[name].high)
    if low is None or high is None:
        return None
    return Estimate(value=known[0], low=low, high=high, seeds=1)


def at_seconds(member: Member, seconds: float, value: Callable[[Point], float]) -> float | None:
    """What a member had after some seconds, on the line between the two nearest scores; None before the first one."""
    return _between([(point.seconds, value(point)) for point in member.points], seconds)


def _between(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The value at x of a line through points of rising x, over log x; beyond the last one its own, before, None."""
    if not points or x <= 0 or x < points[0][0] * (1 - 1e-9):
        return None
    for (left, a), (right, b) in itertools.pairwise(points):
        if x <= right:
            share = math.log(x / left) / math.log(right / left) if right > left and left > 0 else 0.0
            return a + max(0.0, share) * (b - a)
    return points[-1][1]


def _reached(curve: Curve, wanted: float, *, lower: bool) -> float | None:
    """Steps at which the mean score first is as good as ``wanted``, on the lines between scores, over log steps."""
    sign = 1 if lower else -1
    values = [sign * (one.value - wanted) for one in curve.estimates]
    for place, value in enumerate(values):
        if value <= 0:
            if place == 0:
                return float(curve.steps[0])
            before = values[place - 1]
            left, right = math.log(curve.steps[place - 1]), math.log(curve.steps[place])
            return math.exp(left + (right - left) * before / (before - value))
    return None
