"""Remarks on a data set: files that are left out or converted, and what was probably meant otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from udit.data.sources import InMemory, Labels, Source

EXAMPLES = 3
"""Files that a note names."""
DARK = 32
"""Brightness, of 255, that some pixel of an image should reach."""

logger = logging.getLogger(__name__)


class Notes:
    """Remarks on a data set, in the order in which they came up, each with a count and the first examples."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._kinds: dict[str, str] = {}

    def add(self, what: str, example: str = "", kind: str = "file", count: int = 1) -> None:
        """Counts files, or of a ``kind``, under a remark; a remark on the data set as a whole has no example."""
        self._counts[what] = self._counts.get(what, 0) + count
        self._kinds[what] = kind
        examples = self._examples.setdefault(what, [])
        if example and len(examples) < EXAMPLES:
            examples.append(example)

    def update(self, other: Notes) -> None:
        """Takes the remarks of another."""
        for what, count in other._counts.items():
            self._counts[what] = self._counts.get(what, 0) + count
            self._kinds[what] = other._kinds[what]
            examples = self._examples.setdefault(what, [])
            examples += other._examples[what][: EXAMPLES - len(examples)]

    def warn(self) -> None:
        """Logs all remarks, as training does before its first step."""
        for note in self:
            logger.warning("data: %s", note)

    def __iter__(self) -> Iterator[str]:
        """A line for each remark: what, how many files, and examples."""
        for what, count in self._counts.items():
            examples = self._examples[what]
            kind = self._kinds[what]
            plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
            many = f"{count:,} {kind if count == 1 else plural}"
            yield f"{what} ({many}, e.g. {', '.join(examples)})" if examples else what

    def __len__(self) -> int:
        """How many remarks there are."""
        return len(self._counts)


def array_notes(source: Source, num_classes: int = 0) -> Notes:
    """Remarks on arrays of images: on their labels, and on pixels in memory that are all black to the network."""
    notes = Notes()
    if source.labels.any() or num_classes:
        trained = np.delete(source.labels, source.held_out)
        notes = label_notes(trained, max(num_classes, int(source.labels.max()) + 1))
    darkness = dark(int(source.pixels.max())) if isinstance(source, InMemory) else None
    if darkness is not None:
        notes.add(darkness)
    return notes


def dark(most: int, scale: int = 255) -> str | None:
    """What images hold whose largest value is ``most`` of ``scale``, in words; None where that is bright enough."""
    if most == 0:
        return "black: no value above 0"
    if most == 1:
        return f"nearly black: values 0 and 1 only, as masks have; multiply them by {scale}"
    if most * 255 < DARK * scale:
        return f"nearly black: no value above {DARK - 1} of 255; scale them, or leave such images out"
    return None


def label_notes(labels: Labels, num_classes: int = 0) -> Notes:
    """Remarks on labels that count from 1, leave most numbers out, or leave classes without images.

    Args:
        labels: [N], of the images to train on.
        num_classes: classes that there are by name or in test images; there may be more labels.
    """
    notes = Notes()
    there = np.unique(labels)
    most, count = int(there[-1]), len(there)
    if most + 1 > 2 * count:
        notes.add(
            f"labels run to {most} and only {count} occur{'s' if count == 1 else ''}, so most classes have no image; "
            "number the classes from 0"
        )
    elif there[0] == 1:
        notes.add(f"labels run from 1 to {most} and count from 0 here, so class 0 has no image; subtract 1")
    else:
        without = np.setdiff1d(np.arange(max(num_classes, most + 1)), there, assume_unique=True)
        what = "classes without an image to train on; add some, or number the others without gaps"
        for label in without[:EXAMPLES]:
            notes.add(what, str(label), "class")
        if len(without) > EXAMPLES:
            notes.add(what, kind="class", count=len(without) - EXAMPLES)
    return notes
