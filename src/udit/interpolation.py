"""Points between two seeds or two classes, free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from udit.errors import UserError

T = TypeVar("T", int, str, int | str)


@dataclass(frozen=True)
class Between(Generic[T]):
    """A point between two seeds or two labels, in the place of one.

    Of seeds it is a point on the great circle through their noise, at every step that draws noise; of labels, a point
    on the line through their embeddings.
    """

    first: T
    second: T
    share: float
    """0 is ``first``, 1 ``second``."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"share is {self.share:g}; it runs from 0 (the first) to 1 (the second)")

    def __str__(self) -> str:
        return f"{self.first} to {self.second}, {self.share:.0%}"


@dataclass(frozen=True)
class Through:
    """In the place of labels: classes that images pass through, evenly from the first to the last."""

    ends: str | Sequence[int | str]
    """At least two: class numbers or names, or a text of them."""


def between(ends: Sequence[T], count: int) -> list[T | Between[T]]:
    """``count`` evenly spaced points from the first of some seeds or labels through the others to the last.

    Args:
        ends: at least two; class names or numbers, or seeds.
        count: points, both ends included; at least as many as ends.

    Returns:
        The ends themselves, and ``Between`` for what lies between them.

    Raises:
        UserError: fewer than two ends, or fewer points than ends.
    """
    if len(ends) < 2:
        raise UserError(f"an interpolation runs between at least two, and was given {list(ends)}; e.g. 3,8")
    if count < len(ends):
        raise UserError(f"{count} images cannot show {len(ends)} ends; ask for at least {len(ends)}")
    points: list[T | Between[T]] = []
    for i in range(count):
        place, rest = divmod(i * (len(ends) - 1), count - 1)
        points.append(Between(ends[place], ends[place + 1], rest / (count - 1)) if rest else ends[place])
    return points
