"""What every source of images provides, images in memory, and how a source is split; free of torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from udit.data.config import SplitData
from udit.errors import UserError, missing_extra

Pixels = NDArray[np.uint8]
"""0..255; of a data set that keeps 16 bits, float32 with fractions."""
Labels = NDArray[np.int64]


class Source(Protocol):
    """Labelled images of one size."""

    labels: Labels
    """[N]"""
    names: Sequence[str]
    """Of each image, in errors and for the split; all different."""
    fingerprint: str
    """sha256 in hex; differs between data sets."""
    held_out: Labels
    """[M] indices of the data set's own test images; empty where it has none."""

    def __len__(self) -> int:
        """Number of images."""

    def image(self, i: int) -> Pixels:
        """Image ``i``, [C, H, W] in 0..255.

        Raises:
            UserError: an image that cannot be decoded.
        """

    def verify(self) -> None:
        """Decodes every image once, so that a damaged one is found before the first step.

        Raises:
            UserError: images that cannot be decoded; names the first.
        """


@runtime_checkable
class RawSource(Protocol):
    """A source of what a codec makes of images, before scaling."""

    def read(self, i: int, mirrored: bool, crop: int | None = None) -> NDArray[Any]:
        """Raw latent of image ``i``, mirrored left to right or not, [c, h, w]; of the central crop if none is named.

        Raises:
            UserError: it cannot be read.
        """


@runtime_checkable
class Cropped(Protocol):
    """A source of several crops of each image."""

    crops: int

    def crop(self, i: int, crop: int) -> Pixels:
        """A crop of image ``i``, [C, H, W].

        Raises:
            UserError: it cannot be decoded.
        """


def crops_of(source: object) -> int:
    """How many crops of each image a source has."""
    return int(getattr(source, "crops", 1))


def cropper(source: Source) -> Callable[[int, int], Pixels]:
    """Reads a crop of an image, by the numbers of both; the image, of a source that has one crop."""
    return source.crop if isinstance(source, Cropped) and source.crops > 1 else lambda i, _: source.image(i)


class InMemory:
    """Images that are already decoded."""

    def __init__(
        self,
        pixels: Pixels,
        labels: Labels,
        names: Sequence[str],
        held_out: Labels | Sequence[int] = (),
        fingerprint: str | None = None,
    ) -> None:
        """Takes [N, C, H, W] pixels, [N] labels, N different names, and the indices of test images.

        The fingerprint is computed where it is not given.
        """
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 4
        assert len(pixels) == len(labels) == len(names)
        self.pixels = pixels
        self.labels = labels.astype(np.int64)
        self.names = names
        self.held_out = np.array(held_out, np.int64)
        self.fingerprint = fingerprint or self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self.held_out.astype("<i8").tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def image(self, i: int) -> Pixels:
        """Image ``i``, [C, H, W]."""
        image: Pixels = self.pixels[i]
        return image

    def verify(self) -> None:
        """Does nothing: the images are decoded."""


def digits() -> InMemory:
    """scikit-learn's 1,797 handwritten digits, [1, 8, 8], their values 0..16 scaled to 0..255.

    Raises:
        UserError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("data.kind=digits", "scikit-learn", "train") from None
    loaded = load_digits()
    pixels = np.round(loaded.images[:, None] * (255 / 16)).astype(np.uint8)
    return InMemory(pixels, loaded.target, [f"digit {i}" for i in range(len(pixels))])


@dataclass(frozen=True)
class Parts:
    """The parts of a source, as sorted indices; no image is in two parts."""

    train: Labels
    """Trains the generator; samples are compared with it."""
    judge: Labels
    """Trains the classifier that judges samples."""
    test: Labels
    """Seen by neither."""


def digest_of(part: Labels) -> str:
    """sha256 of a part's indices into its source."""
    return hashlib.sha256(part.astype("<i8").tobytes()).hexdigest()


def parts_of(source: Source, data: SplitData) -> Parts:
    """The parts that a run's ``data`` section asks for.

    A number as ``test_share`` splits all images; with None the data set's own test images are the test part, and the
    others are split.

    Raises:
        UserError: ``test_share`` is None and the data set has no test images of its own.
    """
    if data.test_share is not None:
        return split(source.labels, source.names, data.judge_share, data.test_share)
    if not len(source.held_out):
        raise UserError(
            "data.test_share is null and the data set has no test images of its own; set data.test_share=0.1"
        )
    rest = np.setdiff1d(np.arange(len(source)), source.held_out)
    parts = split(source.labels[rest], [source.names[i] for i in rest], data.judge_share, 0)
    return Parts(rest[parts.train], rest[parts.judge], np.sort(source.held_out))


def split(labels: Labels, names: Sequence[str], judge_share: float, test_share: float) -> Parts:
    """Splits every class by the same shares, rounded down.

    Within a class, images are ordered by the sha256 of their names, so that adding images does not reorder the others.

    Args:
        labels: [N]
        names: N different names.
        judge_share: of each class, in [0, 1).
        test_share: of each class; both shares sum to less than 1, so each class keeps an image to train on.
    """
    hashes = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    train: list[int] = []
    judge: list[int] = []
    test: list[int] = []
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: hashes[i])
        # 100 * 0.29 is 28.999...
        num_judge = math.floor(len(members) * judge_share + 1e-9)
        num_test = min(math.floor(len(members) * test_share + 1e-9), len(members) - 1 - num_judge)
        judge += members[:num_judge]
        test += members[num_judge : num_judge + num_test]
        train += members[num_judge + num_test :]
    return Parts(*(np.array(sorted(part), np.int64) for part in (train, judge, test)))
