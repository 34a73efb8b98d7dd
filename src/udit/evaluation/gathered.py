"""What one pass over images leaves of their features: statistics of all of them, and the features of at most 10,000.

So the memory that a score takes does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from udit.data.sources import Labels, Pixels
from udit.evaluation.fidelity import Extractor, Features, InceptionScore
from udit.evaluation.frechet import Array, Statistics
from udit.evaluation.image_set import ImageSet

KEPT = 10_000
"""Images, evenly spread over all, whose features are kept: for KID, MIND, manifolds and intervals."""
GROUPS = 5
"""Disjoint subsets of the samples, whose scores show how much a score varies."""


@dataclass(frozen=True)
class Gathered:
    """Of one extractor."""

    count: int
    """Number of images."""
    pool: tuple[Statistics, ...]
    """Of the pooled features, of each of ``GROUPS`` consecutive subsets; of one where there are few images."""
    rows: Array
    """Pooled features of kept images, [n, D]."""
    spatial: tuple[Statistics, ...] = ()
    """As ``pool``, of the features behind sFID; empty where there are none."""
    spatial_rows: Array = field(default_factory=lambda: np.empty((0, 0)))
    """As ``rows``."""
    inception_score: tuple[float, float] | None = None
    classes: Labels | None = None
    """The classes that a judge saw, [count]."""

    @property
    def statistics(self) -> Statistics:
        """Of the pooled features of all images."""
        return Statistics.joined(self.pool)


def gather(
    images: Pixels | ImageSet, extractors: Sequence[Extractor], watch: Callable[[Pixels], object] = lambda _: None
) -> list[Gathered]:
    """Reads images once, in chunks, and takes the features of each extractor of every chunk.

    Args:
        images: uint8 [N, C, H, W], or a set.
        extractors: called with one chunk at a time.
        watch: also called with every chunk.
    """
    images = ImageSet.of(images)
    gathering = [_Gathering(len(images), extractor.inception) for extractor in extractors]
    for chunk in images.chunks():
        watch(chunk)
        for extractor, one in zip(extractors, gathering, strict=True):
            one.add(extractor(chunk))
    return [one.done() for one in gathering]


class _Gathering:
    def __init__(self, count: int, inception: bool) -> None:
        groups = GROUPS if count >= 2 * GROUPS else 1
        self.ends = np.cumsum([len(part) for part in np.array_split(np.empty(count, np.bool_), groups)])
        self.kept = np.arange(min(count, KEPT)) * count // min(count, KEPT)
        self.count, self.place = count, 0
        self.pool: list[Statistics | None] = [None] * groups
        self.spatial: list[Statistics | None] = [None] * groups
        self.rows: list[Array] = []
        self.spatial_rows: list[Array] = []
        self.classes: list[Labels] = []
        self.score = InceptionScore(count) if inception else None

    def add(self, features: Features) -> None:
        """The next images."""
        start, end = self.place, self.place + len(features.pool)
        _into(self.pool, self.ends, start, features.pool)
        own = self.kept[(self.kept >= start) & (self.kept < end)] - start
        self.rows.append(features.pool[own])
        if features.spatial is not None:
            _into(self.spatial, self.ends, start, features.spatial)
            self.spatial_rows.append(features.spatial[own])
        if self.score is not None and features.logits is not None:
            self.score.add(features.logits)
        if features.classes is not None:
            self.classes.append(features.classes)
        self.place = end

    def done(self) -> Gathered:
        """All of them."""
        return Gathered(
            self.count,
            tuple(part for part in self.pool if part is not None),
            np.concatenate(self.rows),
            tuple(part for part in self.spatial if part is not None),
            np.concatenate(self.spatial_rows) if self.spatial_rows else np.empty((0, 0)),
            self.score.value() if self.score is not None and self.score.sums is not None else None,
            np.concatenate(self.classes) if self.classes else None,
        )


def _into(groups: list[Statistics | None], ends: NDArray[np.int64], start: int, features: Array) -> None:
    """Adds features of the images from a place on to the statistics of the groups that they belong to."""
    for group, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        part = features[max(0, first - start) : max(0, last - start)]
        if len(part):
            own, before = Statistics.of(part), groups[group]
            groups[group] = own if before is None else Statistics.joined([before, own])
