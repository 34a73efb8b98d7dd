"""Claims about which system scores better: judged by the finished members of ``udit compare``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from udit.claims.claim import UNMEASURED, Judged, markdown, slope
from udit.comparison.job import comparable
from udit.comparison.records import Member, read_members
from udit.comparison.summary import Estimate, at_seconds, student

FASHION, SIZES, NEWER, TRICKS = "fashion-mnist", "fashion-mnist-sizes", "fashion-mnist-newer", "digits-tricks"
"""Comparisons: benchmarks/comparison-NAME.yaml says what they are."""
FASHION_MNIST = (FASHION, SIZES, NEWER)
"""Those of one protocol on one data set."""
SCORE = "distance"
LITTLE = 0.10
"""The share of DiT's distance that is still a little gain; the report's Table 1 has 4.5 %."""
MATCH = 0.05
"""By how much a distance may be larger and still match."""

BySize = dict[float, dict[int, Member]]
"""Members of one system by budget, and by seed."""


class Members:
    """Finished members of all comparisons, those that may be on one axis together."""

    def __init__(self, found: dict[str, list[Member]]) -> None:
        """Takes members by comparison."""
        self.found = found

    @classmethod
    def read(cls, folder: Path) -> Members:
        """Those below a folder, one folder for each comparison.

        Raises:
            UserError: a record is damaged.
        """
        names = [path.name for path in sorted(folder.glob("*")) if any((path / "records").glob("*.json"))]
        return cls({name: read_members(folder / name) for name in names})

    def curves(self, names: Sequence[str]) -> dict[str, dict[float, Estimate]]:
        """By system and budget: the distance at the end of the training, a mean over seeds, where there are two."""
        found: dict[str, dict[float, Estimate]] = {}
        for system in dict.fromkeys(member.system for name in names for member in self.found.get(name, [])):
            by = {amount: list(scores(seeds).values()) for amount, seeds in sorted(self.of(names, system).items())}
            curve = {amount: student(values) for amount, values in by.items() if len(values) > 1}
            if curve:
                found[system] = curve
        return found

    def of(self, names: Sequence[str], system: str) -> BySize:
        """One system's members by budget and seed."""
        alike, _ = comparable([member for name in names for member in self.found.get(name, [])])
        by: BySize = {}
        for member in alike:
            if member.system == system:
                by.setdefault(member.size.amount, {})[member.seed] = member
        return by


Seeds = dict[int, Member]


def scores(members: Seeds, point: int = -1) -> dict[int, float]:
    """The score of each seed at one of the fractions."""
    return {seed: member.points[point].scores[SCORE].value for seed, member in members.items()}


def gain(ahead: Seeds, behind: Seeds, point: int = -1) -> Estimate | None:
    """By how much the first is better, as a share of the second's distance, by the seeds of both; None below two."""
    own, its = scores(ahead, point), scores(behind, point)
    return _share([(own[seed], its[seed]) for seed in sorted(own.keys() & its.keys())])


def gain_in_seconds(ahead: Seeds, behind: Seeds) -> tuple[float, Estimate] | None:
    """The gain after the seconds in which the faster one ends, and these; None where a first score is later."""
    seconds = min(statistics.fmean(one.points[-1].seconds for one in each.values()) for each in (ahead, behind))
    pairs = []
    for seed in sorted(ahead.keys() & behind.keys()):
        own, its = (
            at_seconds(each[seed], seconds, lambda point: point.scores[SCORE].value) for each in (ahead, behind)
        )
        if own is None or its is None:
            return None
        pairs.append((own, its))
    found = _share(pairs)
    return None if found is None else (seconds, found)


def _share(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """How much less the first of each seed's two scores is, as a share of the second's mean; None below two seeds."""
    if len(pairs) < 2:
        return None
    mean = statistics.fmean(its for _, its in pairs)
    return student([(its - own) / mean for own, its in pairs])


def verdict(gains: Sequence[Estimate], told: str, least: float = 0.0) -> Judged:
    """Whether all gains are above ``least``: holds, does not hold where one is below, else it cannot be told."""
    if not gains:
        return UNMEASURED
    if all(one.low > least for one in gains):
        return Judged("holds", told)
    if any(one.high < least for one in gains):
        return Judged("does not hold", told)
    return Judged("cannot be tested at this scale", f"{told}; the intervals do not decide")


@dataclass(frozen=True)
class Pair:
    """Two systems of which a claim says something at equal budgets."""

    better: str
    worse: str
    comparisons: tuple[str, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """Whose members are needed."""
        return self.better, self.worse

    def among(self, members: Members) -> list[BySize]:
        """Those of the better, and those of the other."""
        return [members.of(self.comparisons, system) for system in self.systems]


@dataclass(frozen=True)
class Ahead(Pair):
    """One system scores better than another at equal budgets, at each budget that both have."""

    throughout: bool = False
    """At every fraction of the training, and not at its end alone."""
    budgets: int = 1
    """At how many there must be members; with fewer the numbers are told without a verdict."""

    def judge(self, members: Members) -> Judged:
        """By the gains at each budget; those after equal seconds are told beside them."""
        own, its = self.among(members)
        gains, parts, timed = [], [], []
        amounts = sorted(own.keys() & its.keys())
        for amount in amounts:
            if in_time := gain_in_seconds(own[amount], its[amount]):
                timed.append(f"{percent(in_time[1])} at {millions(amount)} after {in_time[0]:.0f} s")
            points = range(len(next(iter(own[amount].values())).points)) if self.throughout else (-1,)
            for point in points:
                found = gain(own[amount], its[amount], point)
                if found is not None:
                    share = next(iter(own[amount].values())).points[point].fraction
                    gains.append(found)
                    parts.append(
                        f"{percent(found)} at {millions(amount)}" + (f" after {share:g}" if self.throughout else "")
                    )
        told = f"{self.better} gains over {self.worse}: {'; '.join(parts)}"
        told += f"; in equal seconds: {'; '.join(timed)}" if timed else ""
        if gains and len(amounts) < self.budgets:
            return Judged("not yet measured", f"so far at {len(amounts)} budget of {self.budgets} or more: {told}")
        return verdict(gains, told)


@dataclass(frozen=True)
class Little(Pair):
    """One system gains at most ``LITTLE`` over another."""

    def judge(self, members: Members) -> Judged:
        """By the gains at each budget."""
        own, its = self.among(members)
        found = {amount: gain(own[amount], its[amount]) for amount in sorted(own.keys() & its.keys())}
        known = {amount: one for amount, one in found.items() if one is not None}
        told = "; ".join(f"{percent(one)} at {millions(amount)}" for amount, one in known.items())
        lost = [Estimate(value=-one.value, low=-one.high, high=-one.low, seeds=one.seeds) for one in known.values()]
        return verdict(lost, f"{self.better} gains over {self.worse}: {told} (little: at most {LITTLE:.0%})", -LITTLE)


@dataclass(frozen=True)
class Fraction(Pair):
    """One system matches or beats another that has at least ``times`` its MACs."""

    times: float = 6.0

    def judge(self, members: Members) -> Judged:
        """By the largest system that is small enough beside each of the other's."""
        own, its = self.among(members)
        gains, parts = [], []
        for amount in sorted(its):
            small = [one for one in own if amount / one >= self.times * 0.98]
            found = gain(own[max(small)], its[amount]) if small else None
            if found is not None:
                gains.append(found)
                parts.append(f"{percent(found)} with {millions(max(small))} against {millions(amount)}")
        told = f"{self.better} gains over {self.worse}: {'; '.join(parts)} (a match: -{MATCH:.0%} or more)"
        return verdict(gains, told, -MATCH)


@dataclass(frozen=True)
class Scaling:
    """More MACs, a smaller distance: the exponent of distance in MACs is negative."""

    better: str
    beside: str
    comparisons: tuple[str, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """Whose members are needed."""
        return self.better, self.beside

    def judge(self, members: Members) -> Judged:
        """By the exponents of all seeds that have every budget."""
        found = {system: self.exponent(members, system) for system in self.systems}
        told = "distance grows with MACs to the power " + "; ".join(
            f"{system} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for system, one in found.items() if one
        )
        first = found[self.better]
        if first is None:
            return UNMEASURED
        return verdict([Estimate(value=-first.value, low=-first.high, high=-first.low, seeds=first.seeds)], told)

    def exponent(self, members: Members, system: str) -> Estimate | None:
        """Of one system; None with less than two budgets or seeds."""
        by = {amount: scores(seeds) for amount, seeds in members.of(self.comparisons, system).items()}
        common = sorted(set.intersection(*(set(one) for one in by.values()))) if len(by) > 1 else []
        if len(common) < 2:
            return None
        return student([slope([(amount, own[seed]) for amount, own in by.items()]) for seed in common])


Test = Ahead | Little | Fraction | Scaling
TESTS: dict[str, Test] = {
    "u-net-gains-little": Little("DiT-UNet", "DiT", (FASHION,)),
    "qkv-beats-kv": Ahead("sub-grids", "keys and values", (TRICKS,)),
    "cosine-attention-helps": Ahead("and cosine", "sub-grids", (TRICKS,)),
    "rope-helps": Ahead("and RoPE", "and cosine", (TRICKS,)),
    "depthwise-ffn-helps": Ahead("and depthwise FFN", "and RoPE", (TRICKS,)),
    "re-parameterisation-helps": Ahead("and re-parameterised", "and depthwise FFN", (TRICKS,)),
    "long-skips-help": Ahead("Skip-DiT", "DiT", (FASHION, NEWER)),
    "u-dit-beats-dit": Ahead("U-DiT", "DiT", (FASHION, SIZES), throughout=True, budgets=2),
    "u-dit-beats-u-vit": Ahead("U-DiT", "U-ViT", (FASHION,), throughout=True),
    "a-sixth-of-the-macs": Fraction("U-DiT", "DiT", (FASHION, SIZES)),
    "dit-scales": Scaling("DiT", "U-DiT", (FASHION, SIZES)),
    "dico-beats-dit": Ahead("DiCo", "DiT", (FASHION,)),
    "mpdit-beats-dit": Ahead("MPDiT", "DiT", (FASHION, NEWER)),
    "lightningdit-beats-dit": Ahead("LightningDiT", "DiT", (FASHION, NEWER)),
}
"""By claim: what must be true of the members."""


def percent(one: Estimate) -> str:
    """A gain with its interval and seeds."""
    return f"{one.value:+.0%} ({one.low:+.0%} to {one.high:+.0%}, {one.seeds} seeds)"


def millions(amount: float) -> str:
    """MACs."""
    return f"{amount / 1e6:.3g} M MACs"


def judge(name: str, members: Members) -> Judged:
    """What the members say of a claim."""
    return TESTS[name].judge(members)


def scale(name: str, members: Members) -> str:
    """How large the members of a claim are, in words; empty without any."""
    test = TESTS[name]
    found = [one for each in _members(test, members) for one in each.values()]
    if not found:
        return ""
    first, seeds = found[0], {one.seed for one in found}
    return (
        f"{first.steps:,} steps of {first.batch_size}, {len(seeds)} seeds, distance by {first.evaluator.name}; "
        f"{first.machine}, {first.versions}, {max(one.date for one in found)}"
    )


def _members(test: Test, members: Members) -> Iterator[Seeds]:
    for system in test.systems:
        yield from members.of(test.comparisons, system).values()


def details(names: Sequence[str], members: Members) -> list[str]:
    """The members behind some claims: a line for each system and budget."""
    rows: list[list[str]] = []
    for name in names:
        test = TESTS[name]
        for system in test.systems:
            for amount, seeds in sorted(members.of(test.comparisons, system).items()):
                row = _row(system, amount, seeds)
                if row not in rows:
                    rows.append(row)
    return markdown(["system", "budget", "seeds", "distance", "agreement", "minutes of training"], rows) if rows else []


def _row(system: str, amount: float, seeds: Seeds) -> list[str]:
    last = [member.points[-1] for member in seeds.values()]
    agreement = [point.scores["agreement"].value for point in last if "agreement" in point.scores]
    return [
        system,
        millions(amount),
        str(len(seeds)),
        told(list(scores(seeds).values())),
        f"{100 * statistics.fmean(agreement):.1f} %" if agreement else "-",
        f"{statistics.fmean(point.seconds for point in last) / 60:.1f}",
    ]


def told(values: Sequence[float], style: Callable[[float], str] = "{:.3g}".format) -> str:
    """A mean over seeds with its interval, if there are two."""
    if len(values) < 2:
        return style(math.fsum(values))
    one = student(values)
    return f"{style(one.value)} ({style(one.low)} to {style(one.high)})"
