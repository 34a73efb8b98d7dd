"""What an evaluation found, and under which protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError

from udit.evaluation.features import NAME
from udit.spec.base import Spec

NOTE = (
    "Distances and classes come from a small classifier that this project trained on the data set's judge part, which "
    "the generator never saw. Its features are not Inception's: no number here compares with a published FID."
)

Share = Annotated[float, Field(ge=0, le=1)]


class Report(Spec):
    """Scores of one set of samples. Distances are squared Frechet distances of the judge's features."""

    num_samples: PositiveInt
    distance: NonNegativeFloat
    """Samples to reference."""
    distance_interval: tuple[float, float]
    """95 %, basic bootstrap."""
    distance_debiased: NonNegativeFloat | None
    """What endless samples would have; None where samples are too few to say, as in the next."""
    debiased_interval: tuple[float, float] | None
    """95 %, of the distance between the generator's distribution and the reference as it stands."""
    distance_spread: tuple[float, ...]
    """Of five parts of the samples, with seeds of their own; each has a fifth of them and so looks farther."""
    precision: Share
    """Samples within the reference's manifold."""
    precision_interval: tuple[float, float]
    """95 %, Wilson."""
    recall: Share
    """The reference within the samples' manifold."""
    matched_count: PositiveInt
    """At most the number of test pictures: the size at which samples and real pictures compare."""
    distance_matched: NonNegativeFloat
    """Random subsets of samples of ``matched_count`` to reference, averaged."""
    distance_real: NonNegativeFloat
    """Test pictures, ``matched_count`` of them, to reference: what a perfect generator would get."""
    agreement: Share
    """Samples that the judge takes for the class that was asked for."""
    agreement_interval: tuple[float, float]
    """95 %, Wilson."""
    judge_on_test: Share
    """The judge's accuracy on test pictures: about the agreement that real pictures get."""
    judge_on_train: Share
    """The same on the generator's training pictures, which the judge has not seen either."""
    memorised: Share
    """Samples nearer to a training picture than the nearest twentieth of test pictures are."""
    memorised_real: Share
    """The same of test pictures, about 5 %: what fresh pictures get."""
    protocol: dict[str, Any]
    """What the caller says of model and sampling; plain values."""
    judge: str
    """Name of network and recipe."""
    judge_sha256: str
    """Of its weights."""
    reference_sha256: str
    """Of the reference pictures: the generator's training part."""
    reference_count: PositiveInt
    note: str = NOTE

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, number, beside what to read it) for each number."""
        low, high = self.distance_interval
        sure, surer = self.agreement_interval
        n = self.matched_count
        return [
            (
                f"class agreement, N = {self.num_samples}",
                _percent(self.agreement),
                f"95 %: {_percent(sure)} to {_percent(surer)}",
            ),
            ("judge right on real test pictures", _percent(self.judge_on_test), "the agreement real pictures get"),
            ("judge right on real training pictures", _percent(self.judge_on_train), "not seen by the judge"),
            (
                f"Fréchet distance, N = {self.num_samples}",
                f"{self.distance:.4f}",
                f"judge features, not FID; 95 %: {low:.4f} to {high:.4f}",
            ),
            (
                "Fréchet distance, endless samples",
                "-" if self.distance_debiased is None else f"{self.distance_debiased:.4f}",
                f"judge features; {_interval(self.debiased_interval)}",
            ),
            (
                f"Fréchet distance of fifths, N = {self.num_samples // 5}",
                f"{sum(self.distance_spread) / max(1, len(self.distance_spread)):.4f}",
                f"judge features; {min(self.distance_spread):.4f} to {max(self.distance_spread):.4f} over seeds",
            ),
            (
                "precision",
                _percent(self.precision),
                "judge features; 95 %: " + " to ".join(map(_percent, self.precision_interval)),
            ),
            ("recall", _percent(self.recall), "judge features; reference within the samples' manifold"),
            (
                f"Fréchet distance, N = {n}",
                f"{self.distance_matched:.4f}",
                "judge features; compare with the next line",
            ),
            (
                f"Fréchet distance, {n} real test pictures",
                f"{self.distance_real:.4f}",
                "judge features; what real pictures get",
            ),
            (
                "near to a training picture",
                _percent(self.memorised),
                f"real test pictures: {_percent(self.memorised_real)}",
            ),
        ]

    def table(self) -> str:
        """Numbers and protocol as Markdown that also reads well as it is."""
        cells = [("score", "value", "beside"), *self.rows()]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        lines = [
            f"| {what.ljust(widths[0])} | {value.rjust(widths[1])} | {beside.ljust(widths[2])} |"
            for what, value, beside in cells
        ]
        lines.insert(1, f"| {'-' * widths[0]} | {'-' * (widths[1] - 1)}: | {'-' * widths[2]} |")
        facts = {
            **self.protocol,
            "judge": f"{self.judge}, weights {self.judge_sha256[:12]}",
            "reference": f"{self.reference_count} training pictures, sha256 {self.reference_sha256[:12]}",
        }
        return "\n".join([*lines, "", self.note, "", *(f"- {key}: {_plain(value)}" for key, value in facts.items())])

    @classmethod
    def read(cls, path: Path, protocol: dict[str, Any]) -> Report | None:
        """The written report if it is one of this protocol and of this version's judge; else None."""
        try:
            report = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            return None
        same = report.protocol == json.loads(json.dumps(protocol)) and report.judge == NAME
        return report if same else None


def _interval(ends: tuple[float, float] | None) -> str:
    return "too few samples for it" if ends is None else f"95 %: {ends[0]:.4f} to {ends[1]:.4f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return "none" if value is None else str(value)
