"""Image files that a folder, an archive or a database holds, as a source: they are decoded when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import numpy as np

from udit.data.buckets import assigned
from udit.data.captions import captions_of
from udit.data.config import DataInfo, ImageFiles
from udit.data.decode import MAX_PIXELS, Budget, decode, peek
from udit.data.deep import decode_deep
from udit.data.notes import Notes
from udit.data.sources import Labels, Pixels
from udit.data.verify import verified
from udit.files import cache_folder


class Records(Protocol):
    """Labelled image files, none of them decoded, in whatever holds them."""

    labels: Labels
    """[N]; all 0 where there are none."""
    names: Sequence[str]
    """Of each image, for the split; all different."""
    sizes: Labels
    """[N] bytes of each file."""
    held_out: Labels
    """[M] indices of the data set's own test images."""
    classes: tuple[str, ...]
    """Names in label order; empty where there are no labels."""
    fingerprint: str
    """sha256 in hex over names, sizes and labels; a copy elsewhere has the same."""
    stamp: str
    """sha256 in hex of the same and of the times of the files, which differs once one was written to."""
    notes: Notes
    """What is left out, and what looks as if something else was meant."""

    def open(self, i: int) -> Path | BinaryIO:
        """The file of image i: its path, or a stream of its bytes.

        Raises:
            UserError: it cannot be read, or what is read is damaged.
        """

    def called(self, i: int) -> str:
        """Image i in errors."""


def info_of(data: ImageFiles, classes: tuple[str, ...], labelled: bool) -> DataInfo:
    """What a data set of image files holds, whose classes are known."""
    height, width = data.shape
    return DataInfo(
        channels=data.channels,
        height=height,
        width=width,
        id2label=classes,
        labelled=labelled,
        captioned=data.captioned,
    )


def verified_as(records: Records, data: ImageFiles) -> Path:
    """The marker file whose presence says that these files, not written to since, could all be decoded."""
    said = f"2 {data.shapes} {MAX_PIXELS} {records.stamp}"
    return cache_folder() / "verified" / hashlib.sha256(said.encode()).hexdigest()


class Encoded:
    """Image files, cropped to one shape as ADM does (Dhariwal & Nichol 2021)."""

    def __init__(self, records: Records, data: ImageFiles) -> None:
        """Takes listed files; decodes nothing, and logs the remarks on them."""
        self.records, self.data = records, data
        self.labels, self.names, self.held_out = records.labels, records.names, records.held_out
        self.fingerprint = records.fingerprint
        if (captions := captions_of(records)) is not None:
            self.captions = captions
        self.crops = data.crops
        self._pixels: Pixels | None = None
        self._shapes: Labels | None = None
        if data.buckets:
            self.buckets = assigned(records, data.shapes)
            self._shapes = np.array(data.shapes)[self.buckets.of]
            self._ends = np.cumsum([0, *(self.crops * data.channels * self._shapes.prod(axis=1))])
        else:
            self._ends = np.arange(len(self) + 1) * (self.crops * data.channels * data.shape[0] * data.shape[1])
        records.notes.warn()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image(self, i: int) -> Pixels:
        """The central crop of image ``i``, [C, H, W] in 0..255; float32 where ``data.deep`` keeps 16 bits.

        Raises:
            UserError: it cannot be decoded, or is larger than ``MAX_PIXELS``.
        """
        return self.crop(i, self.crops // 2)

    def crop(self, i: int, crop: int) -> Pixels:
        """One of the ``crops`` of image ``i``, as ``image``.

        Raises:
            UserError: see there.
        """
        if self._pixels is None:
            return self._decode(i, crop)
        kept: Pixels = self._pixels[self._ends[i] : self._ends[i + 1]]
        return kept.reshape(self.crops, self.data.channels, *self._shape(i))[crop]

    def _shape(self, i: int) -> tuple[int, int]:
        if self._shapes is None:
            return self.data.shape
        height, width = self._shapes[i].tolist()
        return height, width

    def verify(self) -> None:
        """Decodes every image once, and keeps them all if they fit into memory.

        If they do not fit, ``data.verify="headers"`` reads headers only; and files that have all been decoded once are
        not decoded again while their names, sizes and times stay the same.

        Raises:
            UserError: images that cannot be decoded; names the first and counts them.
        """
        if self._pixels is not None:
            return
        budget = Budget()
        self._pixels = verified(
            self._ends,
            lambda i: np.stack([self._decode(i, crop, budget) for crop in range(self.crops)]),
            (lambda i: peek(self.records.open(i), self.records.called(i))) if self.data.verify == "headers" else None,
            verified_as(self.records, self.data),
            np.float32 if self.data.deep else np.uint8,
        )

    def _decode(self, i: int, crop: int, budget: Budget | None = None) -> Pixels:
        data, records = self.data, self.records
        at = crop / (self.crops - 1) if self.crops > 1 else 0.5
        said = (records.open(i), self._shape(i), data.channels, records.called(i), budget, data.bits, at)
        return cast(Pixels, decode_deep(*said)) if data.deep else decode(*said)
