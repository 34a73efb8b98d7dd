"""What a claim is, and what is kept of its measurement; free of torch."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from udit.errors import UserError
from udit.record import Record
from udit.spec.base import Spec, parse

Verdict = Literal["holds", "does not hold", "cannot be tested at this scale", "not yet measured"]

Kind = Literal["attention", "spectra", "caching", "growth", "sizes", "comparisons"]
"""The measurement that a claim is judged by; each is a module of this package."""


@dataclass(frozen=True)
class Claim:
    """A row of docs/claims.md."""

    name: str
    """What ``udit claims NAME`` takes."""
    said: str
    """The claim in one sentence."""
    where: str
    """Paper, and its section or table."""
    kind: Kind
    """What it is measured by."""
    rule: str
    """When it holds."""


@dataclass(frozen=True)
class Judged:
    """What a measurement says of a claim."""

    verdict: Verdict
    measured: str
    """The numbers behind the verdict, in a sentence or two."""


UNMEASURED = Judged("not yet measured", "")


class Interval(Spec):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of independent values, by the normal distribution; at least two."""
        mean = statistics.fmean(values)
        half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
        return cls(value=mean, low=mean - half, high=mean + half)

    def text(self, style: str = ".2f") -> str:
        """E.g. ``0.81 (0.79 to 0.83)``."""
        return f"{self.value:{style}} ({self.low:{style}} to {self.high:{style}})"

    def percent(self) -> str:
        """As a share."""
        return f"{100 * self.value:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


class Measurement(Record):
    """What every measurement's JSON begins with."""

    format: Literal[1] = 1
    command: str
    """What measured it."""
    scale: str
    """Models, data, seeds and repetitions, in words."""
    machine: str
    versions: str
    date: str

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file; None where there is none.

        Raises:
            UserError: it is damaged.
        """
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            detail = " ".join(str(error).split())[:100]
            raise UserError(f"{path} cannot be read ({detail}); measure it again, or remove it") from None
        return parse(cls, values, where=path)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent p of y ~ x**p: the least-squares slope of log y over log x.

    Args:
        points: (x, y), both positive, at two x or more.
    """
    return statistics.linear_regression([math.log(x) for x, _ in points], [math.log(y) for _, y in points]).slope


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with an empty line behind it; columns of numbers to the right."""
    right = [all(row[i][:1] in "-+0123456789" for row in rows) for i in range(len(header))]
    rule = ["---:" if number else "---" for number in right]
    return [*("| " + " | ".join(row) + " |" for row in itertools.chain([header, rule], rows)), ""]
