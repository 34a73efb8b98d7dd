"""Where pictures come from, free of torch: what every source promises, pictures in memory, and how they are split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from udit.data.config import SplitData
from udit.errors import UserError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Source(Protocol):
    """Labelled pictures of one size."""

    labels: Labels
    """[N]"""
    names: Sequence[str]
    """What errors and the split call picture i; unlike for each."""
    fingerprint: str
    """sha256 in hex; another data set has another one."""
    held_out: Labels
    """[M] indices of the pictures that the data set itself keeps for testing; empty where it keeps none."""

    def __len__(self) -> int:
        """Number of pictures."""

    def image(self, i: int) -> Pixels:
        """Picture ``i``, [C, H, W] in 0..255.

        Raises:
            UserError: a picture that cannot be decoded.
        """

    def verify(self) -> None:
        """Decodes every picture once, so that a broken one is found before the first step.

        Raises:
            UserError: pictures that cannot be decoded; names the first.
        """


class InMemory:
    """Pictures that are already decoded."""

    def __init__(
        self,
        pixels: Pixels,
        labels: Labels,
        names: Sequence[str],
        held_out: Labels | Sequence[int] = (),
        fingerprint: str | None = None,
    ) -> None:
        """Takes [N, C, H, W] pixels, [N] labels, N unlike names, and the indices of test pictures.

        A fingerprint that is not given is computed.
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
        """Number of pictures."""
        return len(self.labels)

    def image(self, i: int) -> Pixels:
        """Picture ``i``, [C, H, W]."""
        picture: Pixels = self.pixels[i]
        return picture

    def verify(self) -> None:
        """Nothing can be wrong."""


def digits() -> InMemory:
    """scikit-learn's 1,797 handwritten digits, [1, 8, 8], their 0..16 stretched to 0..255.

    Raises:
        UserError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("data.kind=digits needs scikit-learn; run: pip install 'udit[train]'") from None
    loaded = load_digits()
    pixels = np.round(loaded.images[:, None] * (255 / 16)).astype(np.uint8)
    return InMemory(pixels, loaded.target, [f"digit {i}" for i in range(len(pixels))])


@dataclass(frozen=True)
class Parts:
    """Which pictures are for what; sorted indices, no two parts share one."""

    train: Labels
    """The generator's; also what samples are compared with."""
    judge: Labels
    """Trains the classifier that judges samples."""
    test: Labels
    """Seen by neither."""


def parts_of(source: Source, data: SplitData) -> Parts:
    """The parts that a run's ``data`` section asks for.

    A number as ``test_share`` splits all pictures; None makes the test part of those that the data set itself keeps for
    testing, and the other parts of the rest.

    Raises:
        UserError: None, and the data set keeps nothing for testing.
    """
    if data.test_share is not None:
        return split(source.labels, source.names, data.judge_share, data.test_share)
    if not len(source.held_out):
        raise UserError(
            "data.test_share is null and the data set keeps no pictures for testing; set data.test_share=0.1"
        )
    rest = np.setdiff1d(np.arange(len(source)), source.held_out)
    parts = split(source.labels[rest], [source.names[i] for i in rest], data.judge_share, 0)
    return Parts(rest[parts.train], rest[parts.judge], np.sort(source.held_out))


def split(labels: Labels, names: Sequence[str], judge_share: float, test_share: float) -> Parts:
    """Splits every class by the same shares, rounded down.

    Within a class, pictures are ordered by the sha256 of their names, so new pictures do not shuffle the old ones.

    Args:
        labels: [N]
        names: N unlike names.
        judge_share: of each class, in [0, 1).
        test_share: of each class; both shares sum to less than 1, so each class keeps a picture to train on.
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
