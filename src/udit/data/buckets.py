"""Images of several shapes: each is cropped to the one whose proportions are nearest to its own; free of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from udit.data.decode import peek
from udit.data.sources import Labels
from udit.data.verify import attempts
from udit.errors import UserError
from udit.files import cache_folder, whole_file

Shape = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True)
class Buckets:
    """Which of several shapes each image has."""

    of: Labels
    """[N] number of each image's shape."""
    shapes: tuple[Shape, ...]

    def members(self, ids: Labels) -> Iterator[tuple[int, Labels]]:
        """Each bucket that some images are of, with their places among them, in order."""
        numbers = self.of[ids]
        for number in np.unique(numbers).tolist():
            yield number, np.flatnonzero(numbers == number)


@runtime_checkable
class Bucketed(Protocol):
    """A source of images of several shapes."""

    buckets: Buckets


def buckets_of(source: object) -> Buckets | None:
    """The buckets of a source, or None where all images have one shape."""
    return source.buckets if isinstance(source, Bucketed) else None


def grouped(source: object, part: Labels) -> list[Labels]:
    """Places in a part, one array for each shape of its images, so that those of an array can be stacked."""
    buckets = buckets_of(source)
    if buckets is None:
        return [np.arange(len(part))]
    return [places for _, places in buckets.members(part)]


def of_first_shape(source: object, part: Labels) -> Labels:
    """Those of a part whose images have the first shape, that of samples."""
    buckets = buckets_of(source)
    return part if buckets is None else part[buckets.of[part] == 0]


def grouped_all(source: Sized) -> list[Labels]:
    """Indices of the images of each shape, also of those that none has."""
    buckets = buckets_of(source)
    if buckets is None:
        return [np.arange(len(source))]
    return [np.flatnonzero(buckets.of == number) for number in range(len(buckets.shapes))]


class Files(Protocol):
    """What is asked of the files of images."""

    stamp: str
    labels: Labels

    def open(self, i: int) -> object:
        """A path or a stream."""

    def called(self, i: int) -> str:
        """The image in errors."""


def assigned(records: Files, shapes: Sequence[Shape]) -> Buckets:
    """The bucket of each image file, by the proportions in its header.

    Headers are read once and kept in the user's cache while the files do not change.

    Raises:
        UserError: an image whose header cannot be read.
    """
    place = cache_folder() / "shapes" / f"{records.stamp}.npy"
    try:
        found = np.load(place, allow_pickle=False)
    except (OSError, ValueError):
        found = _measured(records)
        _keep(place, found)
    proportions = np.log(found[:, :1] / found[:, 1:])
    wanted = np.log([height / width for height, width in shapes])
    return Buckets(np.abs(proportions - wanted).argmin(axis=1).astype(np.int64), tuple(shapes))


def _measured(records: Files) -> Labels:
    """[N, 2] height and width of each image, upright."""
    count = len(records.labels)
    found = np.empty((count, 2), np.int64)

    def measure(i: int) -> Shape:
        return peek(records.open(i), records.called(i)).upright  # type: ignore[arg-type]

    for i, result in enumerate(attempts(measure, count, "reading sizes")):
        if isinstance(result, UserError):
            raise result
        found[i] = result
    return found


def _keep(place: Path, found: Labels) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written is not an error
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place, durable=False) as temporary, temporary.open("wb") as stream:
            np.save(stream, found)
