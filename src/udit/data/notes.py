"""Remarks on a data set: files that are left out or converted, and what was probably meant otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from udit.data.sources import Labels

EXAMPLES = 3
"""Files that a note names."""


class Notes:
    """Remarks on a data set, in the order in which they came up, each with a count and the first examples."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}
        self._kinds: dict[str, str] = {}

    def add(self, what: str, example: str = "", kind: str = "file") -> None:
        """Counts a file, or a ``kind``, under a remark; a remark on the data set as a whole has no example."""
        self._counts[what] = self._counts.get(what, 0) + 1
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


def label_notes(labels: Labels) -> Notes:
    """Remarks on labels [N] that count from 1, or that leave most numbers out."""
    notes = Notes()
    there = np.unique(labels)
    most, count = int(there[-1]), len(there)
    if there[0] > 0:
        notes.add(
            f"labels run from {there[0]} to {most} and count from 0 here, so class 0 has no image; subtract {there[0]}"
        )
    elif most + 1 > 2 * count:
        notes.add(
            f"labels run to {most} and only {count} numbers occur, so most classes have no image; number the classes "
            "from 0"
        )
    return notes
