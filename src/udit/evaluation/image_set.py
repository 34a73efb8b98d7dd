"""Sets of images that are read some at a time, so that none of them needs to fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from udit.data.sources import Labels, Pixels, Source

Scalar = TypeVar("Scalar", bound=np.generic)
CHUNK = 1024
"""Images held at once where a set is read from beginning to end: a multiple of the batches of all extractors."""
MAX_KEPT_BYTES = 1 << 29
"""Larger sets are read again each time they are needed."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in an order."""

    count: int
    shape: tuple[int, int, int]
    """(C, H, W)."""
    read: Callable[[NDArray[np.int64]], Pixels]
    """uint8 [n, C, H, W] of n indices below ``count``."""

    @classmethod
    def of(cls, images: Pixels | ImageSet) -> ImageSet:
        """A set of images [N, C, H, W] in memory; a set is returned as it is."""
        if isinstance(images, ImageSet):
            return images
        channels, height, width = images.shape[1:]

        def read(ids: NDArray[np.int64]) -> Pixels:
            consecutive = np.array_equal(ids, np.arange(ids[0], ids[0] + len(ids)))
            return images[ids[0] : ids[0] + len(ids)] if consecutive else images[ids]  # a view where it can be one

        return cls(len(images), (channels, height, width), read)

    @classmethod
    def of_source(cls, source: Source, part: Labels) -> ImageSet:
        """The images of a part of a data set, decoded when they are read."""
        channels, height, width = source.image(int(part[0])).shape if len(part) else (0, 0, 0)

        def read(ids: NDArray[np.int64]) -> Pixels:
            with ThreadPoolExecutor() as pool:
                return np.stack(list(pool.map(source.image, part[ids].tolist())))

        return cls(len(part), (channels, height, width), read)

    def __len__(self) -> int:
        """Number of images."""
        return self.count

    def chunks(self, size: int = CHUNK) -> Iterator[Pixels]:
        """All images in order, uint8 [size, C, H, W] at a time."""
        for start in range(0, self.count, size):
            yield self.read(np.arange(start, min(start + size, self.count)))

    def map(self, function: Callable[[Pixels], NDArray[Scalar]]) -> NDArray[Scalar]:
        """What a function returns for all images, [N, ...]; it is called with some of them at a time."""
        return np.concatenate([function(chunk) for chunk in self.chunks()])

    def kept(self, max_bytes: int | None = None) -> ImageSet:
        """The same set, read into memory unless it takes more than ``max_bytes`` (``MAX_KEPT_BYTES`` if None)."""
        limit = MAX_KEPT_BYTES if max_bytes is None else max_bytes
        if not self.count or self.count * int(np.prod(self.shape)) > limit:
            return self
        return ImageSet.of(np.concatenate(list(self.chunks())))
