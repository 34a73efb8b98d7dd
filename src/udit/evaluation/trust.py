"""How far a judge can be believed: on how many real images it is right, compared with chance."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from udit.data.sources import Labels, Parts, Source, digest_of
from udit.evaluation.image_set import ImageSet
from udit.evaluation.metrics import share_interval

if TYPE_CHECKING:
    from udit.evaluation.judge import Judge

KAPPA = 0.5
"""Least share of the way from chance to always right (Cohen's kappa) that a judge must surely have gone."""
MOST = 10_000
"""Test images, evenly spread, that a judge is asked about before anything is sampled."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trust:
    """A judge's answers on real test images that it was not trained on."""

    right: int
    count: int
    chance: float
    """The share of the most frequent class: what always naming that class is right on."""
    images: str = ""
    """sha256 of the places of the test images in the data set, where they are known."""

    @staticmethod
    def of(predicted: Labels, wanted: Labels) -> Trust:
        """Of predicted and true classes [N] of test images."""
        most = np.unique(wanted, return_counts=True)[1].max()
        return Trust(int((predicted == wanted).sum()), len(wanted), float(most) / len(wanted))

    @staticmethod
    def from_json(text: str) -> Trust:
        """What ``to_json`` wrote.

        Raises:
            ValueError: not JSON.
            TypeError: other keys.
        """
        return Trust(**json.loads(text))

    def to_json(self) -> str:
        """Its numbers, as they are kept with a judge's weights."""
        return json.dumps(asdict(self))

    @property
    def accuracy(self) -> float:
        """Share of test images on which the judge is right."""
        return self.right / self.count

    @property
    def described(self) -> str:
        """The accuracy in a few words, for names and notes beside scores."""
        return f"{100 * self.accuracy:.1f} % of {self.count} real test images"

    @property
    def weak(self) -> bool:
        """Whether the lower end of Wilson's 95 % interval of the accuracy lies below kappa ``KAPPA``."""
        return share_interval(self.accuracy, self.count)[0] < self.chance + KAPPA * (1 - self.chance)

    def warning(self) -> str | None:
        """One line for a judge that is weak; None for another."""
        if not self.weak:
            return None
        low, high = share_interval(self.accuracy, self.count)
        return (
            f"weak judge: it is right on {self.right} of {self.count} real test images ({100 * self.accuracy:.1f} %, "
            f"95 %: {100 * low:.1f} to {100 * high:.1f} %; always naming the most frequent class: "
            f"{100 * self.chance:.1f} %), so that numbers by it tell little; a larger data.judge_share, more images or "
            "more evaluation.judge_steps make a better one"
        )


def trust_of(judge: Judge, source: Source, parts: Parts) -> Trust:
    """A judge's answers on at most ``MOST`` test images of a data set; it is not asked again about the same ones."""
    part = parts.test[:: -(-len(parts.test) // MOST)]
    images = digest_of(part)
    if judge.trust is not None and judge.trust.images == images:
        return judge.trust
    return replace(Trust.of(ImageSet.of_source(source, part).map(judge.predict), source.labels[part]), images=images)


def warn_of_weak(judge: Judge, source: Source, parts: Parts) -> str | None:
    """Logs a warning where the judge of a data set is weak, and returns it."""
    warning = trust_of(judge, source, parts).warning()
    if warning:
        log.warning("%s", warning)
    return warning
