"""Moving digits: two of scikit-learn's handwritten digits that bounce within a square, as clips of grey frames.

After Moving MNIST (Srivastava et al. 2015), with smaller real digits and a label: which two they are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from udit.data.config import DataInfo, MovingDigitsData
from udit.data.sources import Pixels, digits

SIDE = 8
"""Of a digit."""
PAIRS = tuple(itertools.combinations_with_replacement(range(10), 2))
"""The two digits of each class."""


def describe(data: MovingDigitsData) -> DataInfo:
    """One channel, and a class for each unordered pair."""
    names = tuple(f"{a} and {b}" for a, b in PAIRS)
    return DataInfo(channels=1, height=data.size, width=data.size, frames=data.frames, id2label=names)


class MovingDigits:
    """Clips, each a function of (``data.seed``, its index): class i % 55, two digits, their ways.

    A digit moves in a straight line at a constant speed and is reflected by the borders. In the first and the last
    frame the two squares of 8x8 pixels are apart, so that both digits can be read there; in between they may overlap,
    and the brighter pixel is seen.
    """

    def __init__(self, data: MovingDigitsData) -> None:
        self.data = data
        source = digits()
        self.digits = source.pixels[:, 0]
        self.of_class = [np.flatnonzero(source.labels == digit) for digit in range(10)]
        self.labels = np.arange(data.clips) % len(PAIRS)
        self.names: Sequence[str] = [f"clip {i}" for i in range(data.clips)]
        self.held_out = np.empty(0, np.int64)
        said = f"moving-digits 1 {data.clips} {data.frames} {data.size} {data.seed} {source.fingerprint}"
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()

    def __len__(self) -> int:
        """Number of clips."""
        return self.data.clips

    def image(self, i: int) -> Pixels:
        """Clip ``i``, [1, F, H, W]."""
        places, chosen = self.ways(i)
        clip = np.zeros((1, self.data.frames, self.data.size, self.data.size), np.uint8)
        for way, digit in zip(places, chosen, strict=True):
            for frame, (row, column) in zip(clip[0], way, strict=True):
                seen = frame[row : row + SIDE, column : column + SIDE]
                np.maximum(seen, self.digits[digit], out=seen)
        return clip

    def ways(self, i: int) -> tuple[np.ndarray, list[int]]:
        """Row and column of both digits in every frame of clip ``i``, [2, F, 2], and which of the 1,797 they are."""
        keyed = hashlib.blake2b(f"{self.data.seed}/moving-digits/{i}".encode(), digest_size=4).digest()
        draw = np.random.RandomState(int.from_bytes(keyed, "little"))  # the stream that numpy never changes
        chosen = [int(draw.choice(self.of_class[digit])) for digit in PAIRS[self.labels[i]]]
        room, times = self.data.size - SIDE, np.arange(self.data.frames)[None, :, None]
        while True:
            start = draw.uniform(0, room, (2, 1, 2))
            angle = draw.uniform(0, 2 * np.pi, (2, 1))
            step = draw.uniform(1, 2.5, (2, 1, 1)) * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
            places = np.rint(room - np.abs((start + step * times) % (2 * room) - room)).astype(np.int64)
            if all((np.abs(places[0, at] - places[1, at]) >= SIDE).any() for at in (0, -1)):
                return places, chosen

    def verify(self) -> None:
        """Does nothing: clips are drawn when they are read."""
