"""One sweep within a budget: which average of the weights, which guidance and which interval, by paired seeds.

Every setting draws the same seeds and labels, so that two of them are compared by the difference of their distances
(``evaluation.paired``), whose interval is far narrower than those of both. What a model has by itself is left only for
something that is better by such an interval: of many settings that differ by chance alone, the best by value is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from udit.diffusion.config import SamplingConfig
from udit.evaluation.frechet import Array, Statistics
from udit.evaluation.paired import LEAST, Difference, frechet_difference
from udit.tuning.quality import Scored, ScoredAverage

GUIDANCES = (0.5, 0.75, 1.5, 2.0)
"""Scales above 1 that are tried, as shares of the model's own; and guidance 1, which is none."""
INTERVAL = (0.2, 0.8)
"""Noise times between which guidance acts, where it is limited to an interval."""


class Measures(Protocol):
    """What a sweep needs of a scorer: one model's images of the same seeds."""

    @property
    def reference(self) -> Statistics:
        """Of the real images' features."""

    @property
    def count(self) -> int:
        """Images per setting."""

    @property
    def features(self) -> dict[SamplingConfig, Array]:
        """Of the images of each setting that was measured."""

    def measure(self, sampling: SamplingConfig) -> Scored:
        """Samples images and scores them."""


M = TypeVar("M", bound=Measures)


@dataclass
class Sweep:
    """The settings that have been measured, and what may still be spent."""

    budget: int | None
    """Evaluations of the network, counted for one image, guided ones twice; None is no limit."""
    on_scored: Callable[[Scored], object]
    spent: int = 0
    left_out: int = 0
    """Settings for which nothing was left."""
    tried: list[Scored] = field(default_factory=list)

    def measure(self, scorer: Measures, sampling: SamplingConfig, *, always: bool = False) -> Scored | None:
        """Measures a setting, if the budget allows it.

        Args:
            scorer: of the model.
            sampling: the setting.
            always: measures it in any case.
        """
        price = scorer.count * cost(sampling)
        if self.budget is not None and self.spent + price > self.budget and not always:
            self.left_out += 1
            return None
        self.spent += price
        scored = scorer.measure(sampling)
        self.on_scored(scored)
        return scored

    def better(
        self, scorer: Measures, own: SamplingConfig, others: Iterable[SamplingConfig]
    ) -> tuple[SamplingConfig, list[Scored]]:
        """The setting of the least distance among those that are surely better than ``own``, which is kept else.

        Returns:
            That setting, and what was measured on the way.
        """
        found = [scored for how in others if (scored := self.measure(scorer, how)) is not None]
        surely = [each for each in found if (d := difference(scorer, each.sampling, scorer, own)) and d.interval[1] < 0]
        best = min(surely, key=lambda each: each.distance, default=None)
        return (own if best is None else best.sampling), found


def cost(sampling: SamplingConfig) -> int:
    """Evaluations of the network for an image; of a cached setting, as if all steps ran whole."""
    return sampling.steps * (1 if sampling.guidance == 1 else 2)


def difference(a: Measures, how_a: SamplingConfig, b: Measures, how_b: SamplingConfig) -> Difference | None:
    """The distance of one way of drawing minus that of another over the same seeds; None where one was not measured."""
    ours, theirs = a.features.get(how_a), b.features.get(how_b)
    if ours is None or theirs is None or len(ours) < LEAST:
        return None
    return frechet_difference(ours, theirs, a.reference)


def averages_of(
    sweep: Sweep, scorer: M, own: SamplingConfig, others: Sequence[tuple[float, Callable[[], M]]]
) -> tuple[M, float | None, tuple[ScoredAverage, ...]]:
    """The scorer of the average of the weights that is surely better than the run's own, which is kept else.

    Args:
        sweep: counts and tells.
        scorer: of the run's own average, with ``own`` measured.
        own: the setting in which they are compared.
        others: lengths of other averages, each with what makes its scorer.

    Returns:
        The scorer, the length of its average (None is the run's own), and what was measured.
    """
    chosen, least = scorer, float("inf")
    length: float | None = None
    found: list[ScoredAverage] = []
    for sigma_rel, make in others:
        other = make()
        scored = sweep.measure(other, own)
        if scored is None:
            continue
        apart = difference(other, own, scorer, own)
        found.append(ScoredAverage(sigma_rel=sigma_rel, scored=scored, difference=apart and apart.interval))
        if apart is not None and apart.interval[1] < 0 and scored.distance < least:
            chosen, length, least = other, sigma_rel, scored.distance
    return chosen, length, tuple(found)


def guidances(own: SamplingConfig) -> Iterator[SamplingConfig]:
    """The setting with other scales of guidance, at the times at which it acts and within an interval.

    A model that is not guided by itself, and one whose guidance is set level by level, has none.
    """
    if own.guidance == 1 or own.guidance_levels is not None:
        return
    yield own.replace(guidance=1.0)
    for share in (1.0, *GUIDANCES):
        for interval in dict.fromkeys((own.guidance_interval, INTERVAL)):
            how = own.replace(guidance=1 + (own.guidance - 1) * share, guidance_interval=interval)
            if how != own:
                yield how
