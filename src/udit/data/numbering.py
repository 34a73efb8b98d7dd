"""Labels as data sets have them, numbers or names, as numbers and class names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from udit.data.notes import Notes, label_notes
from udit.data.npz import MAX_LABELS
from udit.data.sources import Labels
from udit.errors import UserError, nearest

Label = int | str | None
"""A number, a name, or nothing."""
NUMBER = re.compile(r"\d{1,9}")


def numbered(found: Sequence[Label], classes: Sequence[str], where: str) -> tuple[Labels, tuple[str, ...]]:
    """Labels of images as numbers, and the names of the classes.

    Whole numbers stay what they are, also where they are written as text; names are numbered in the order of
    ``classes``, or sorted.

    Args:
        found: one for each image; None where an image has none.
        classes: that the user names, in label order; empty where not.
        where: what holds the labels, in errors.

    Returns:
        [N] labels, all 0 without any, and names: empty where no image has a label.

    Raises:
        UserError: some images have a label and others none, numbers and names, or a label that is not of ``classes``.
    """
    missing = sum(label is None for label in found)
    if missing == len(found):
        return np.zeros(len(found), np.int64), ()
    if missing:
        raise UserError(f"{where}: {missing:,} of {len(found):,} images have no label and the others have one")
    known: dict[Label, int] = dict.fromkeys(found, 0)
    if all(isinstance(label, int) or NUMBER.fullmatch(str(label)) for label in known):
        numbers = np.array([int(label or 0) for label in found], np.int64)
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= MAX_LABELS:
            raise UserError(
                f"{where}: labels run from {low} to {high}; classes are numbered from 0, below {MAX_LABELS:,}"
            )
        if classes and high >= len(classes):
            raise UserError(
                f"{where}: there is a label {high} and data.classes names {len(classes)}; labels count from 0, name all"
            )
        return numbers, tuple(classes) or tuple(str(label) for label in range(high + 1))
    if any(isinstance(label, int) for label in known):
        raise UserError(f"{where}: some labels are numbers and others names; take one of the two")
    names = tuple(classes) or tuple(sorted(map(str, known)))
    place = {name: i for i, name in enumerate(names)}
    for label in known:
        if str(label) not in place:
            raise UserError(
                f"{where}: there is a label {str(label)!r}, which data.classes lacks{nearest(str(label), names)}"
            )
        known[label] = place[str(label)]
    return np.array([known[label] for label in found], np.int64), names


def notes_on(labels: Labels, classes: Sequence[str]) -> Notes:
    """Remarks on labels of images that have some."""
    return label_notes(labels, len(classes)) if classes and len(labels) else Notes()
