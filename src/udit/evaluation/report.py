"""The scores of an evaluation, with their protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError

from udit.evaluation.judge_network import NETWORKS
from udit.record import Record

NOTE = (
    "Distances and classes come from a small classifier that udit trained on your data, on the judge part, which the "
    "generator never saw. Its features are not Inception's: no number here compares with a published FID."
)

Share = Annotated[float, Field(ge=0, le=1)]


class Report(Record):
    """Scores of one set of generated images. Distances are squared Fréchet distances of the judge's features."""

    num_samples: PositiveInt
    distance: NonNegativeFloat
    """From the samples to the reference."""
    distance_interval: tuple[float, float]
    """95 %, basic bootstrap."""
    distance_debiased: NonNegativeFloat | None
    """Extrapolated to infinitely many samples; None where samples are too few to say, as in the next."""
    debiased_interval: tuple[float, float] | None
    """95 %, of the distance between the generator's distribution and this reference."""
    distance_spread: tuple[float, ...]
    """Of five disjoint subsets of the samples; each is smaller, so its distance is biased upwards more."""
    precision: Share
    """Samples within the reference's manifold."""
    precision_interval: tuple[float, float]
    """95 %, Wilson."""
    recall: Share
    """The reference within the samples' manifold."""
    matched_count: PositiveInt
    """At most the number of test images: the sample size at which generated and real images can be compared."""
    distance_matched: NonNegativeFloat
    """From random subsets of ``matched_count`` samples to the reference, averaged."""
    distance_real: NonNegativeFloat
    """From ``matched_count`` test images to the reference: what a perfect generator would get."""
    agreement: Share
    """Samples that the judge classifies as the requested class."""
    agreement_interval: tuple[float, float]
    """95 %, Wilson."""
    judge_on_test: Share
    """The judge's accuracy on test images: about the agreement that real images get."""
    judge_on_train: Share
    """The same on the generator's training images, which the judge was not trained on either."""
    judge_chance: Share | None = None
    """Share of the most frequent class among test images, which always naming it is right on; None in older files."""
    judge_warning: str | None = None
    """One line where the judge is so weak that these numbers tell little (``Trust``)."""
    memorised: Share
    """Samples that are nearer to a training image than all but the nearest 5 % of test images."""
    memorised_real: Share
    """The same of test images, about 5 %: what a perfect generator would get."""
    protocol: dict[str, Any]
    """How the images were generated, as given by the caller; plain values."""
    judge: str
    """Name of the classifier and its training recipe."""
    judge_sha256: str
    """Of the classifier's weights."""
    reference_sha256: str
    """Of the reference images: the generator's training part."""
    reference_count: PositiveInt
    note: str = NOTE

    @property
    def setting(self) -> dict[str, Any]:
        """What the scores are of."""
        return self.protocol

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, number, context in which to read it) for each number."""
        low, high = self.distance_interval
        sure, surer = self.agreement_interval
        n = self.matched_count
        return [
            (
                f"class agreement, N = {self.num_samples}",
                percent(self.agreement),
                f"95 %: {percent(sure)} to {percent(surer)}",
            ),
            ("judge accuracy on real test images", percent(self.judge_on_test), "the agreement real images get"),
            ("judge accuracy on real training images", percent(self.judge_on_train), "not seen by the judge"),
            (
                f"Fréchet distance, N = {self.num_samples}",
                f"{self.distance:.4f}",
                f"judge features, not FID; 95 %: {low:.4f} to {high:.4f}",
            ),
            (
                "Fréchet distance, infinitely many samples",
                "-" if self.distance_debiased is None else f"{self.distance_debiased:.4f}",
                f"judge features; {_interval(self.debiased_interval)}",
            ),
            (
                f"Fréchet distance of five disjoint subsets, N = {self.num_samples // 5}",
                f"{sum(self.distance_spread) / max(1, len(self.distance_spread)):.4f}",
                f"judge features; {min(self.distance_spread):.4f} to {max(self.distance_spread):.4f}",
            ),
            (
                "precision",
                percent(self.precision),
                "judge features; 95 %: " + " to ".join(map(percent, self.precision_interval)),
            ),
            ("recall", percent(self.recall), "judge features; reference within the samples' manifold"),
            (
                f"Fréchet distance, N = {n}",
                f"{self.distance_matched:.4f}",
                "judge features; compare with the next line",
            ),
            (
                f"Fréchet distance, {n} real test images",
                f"{self.distance_real:.4f}",
                "judge features; what real images get",
            ),
            (
                "close to a training image",
                percent(self.memorised),
                f"real test images: {percent(self.memorised_real)}",
            ),
        ]

    def table(self) -> str:
        """Numbers and protocol as Markdown that also reads well as it is."""
        cells = [("score", "value", "context"), *self.rows()]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        lines = [
            f"| {what.ljust(widths[0])} | {value.rjust(widths[1])} | {note.ljust(widths[2])} |"
            for what, value, note in cells
        ]
        lines.insert(1, f"| {'-' * widths[0]} | {'-' * (widths[1] - 1)}: | {'-' * widths[2]} |")
        facts = {
            **self.protocol,
            "judge": f"{self.judge}, right on {percent(self.judge_on_test)} of real test images, weights "
            f"{self.judge_sha256[:12]}",
            "reference": f"{self.reference_count} training images, sha256 {self.reference_sha256[:12]}",
        }
        warned = ["", f"**{self.judge_warning}**"] if self.judge_warning else []
        return "\n".join(
            [*lines, *warned, "", self.note, "", *(f"- {key}: {plain(value)}" for key, value in facts.items())]
        )

    @classmethod
    def read(cls, path: Path, protocol: dict[str, Any]) -> Report | None:
        """The report in a file if it is of this protocol and a known version of the judge; otherwise None."""
        try:
            report = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            return None
        same = report.protocol == json.loads(json.dumps(protocol)) and report.judge in NETWORKS
        return report if same else None


def _interval(ends: tuple[float, float] | None) -> str:
    return "too few samples" if ends is None else f"95 %: {ends[0]:.4f} to {ends[1]:.4f}"


def percent(share: float) -> str:
    """A share with one decimal place."""
    return f"{100 * share:.1f} %"


def plain(value: Any) -> str:
    """A value of a protocol in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    return "none" if value is None else str(value)
