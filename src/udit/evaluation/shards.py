"""Samples for a score, drawn in shards: a killed drawing goes on, and any number of ranks draws the same pictures."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from udit import rng
from udit.data.sources import Pixels
from udit.errors import UserError
from udit.evaluation import npz


def labels_for(count: int, num_classes: int, how: Literal["balanced", "random"], first_seed: int) -> list[int]:
    """A label a picture: all classes in turn, or uniform ones keyed by the picture's seed."""
    if how == "balanced":
        return [i % num_classes for i in range(count)]
    generators = (rng.generator(first_seed + i, "label") for i in range(count))
    return [int(torch.randint(num_classes, (1,), generator=generator)) for generator in generators]


class Shards:
    """Pictures of one drawing on disk, ``size`` a file. A file is a batch, so bits do not depend on the ranks."""

    def __init__(self, parent: Path, key: dict[str, Any], count: int, size: int) -> None:
        """Takes where they lie, what they depend on, how many pictures there are in all, and how many a shard holds."""
        digest = hashlib.sha256(json.dumps(key | {"size": size}, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = parent / f"samples-{digest}"
        self.count, self.size = count, size

    def __len__(self) -> int:
        """Number of shards."""
        return -(-self.count // self.size)

    def places(self, shard: int) -> range:
        """Which pictures a shard holds."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def missing(self, rank: int = 0, world: int = 1) -> Iterator[int]:
        """This rank's shards that are not there whole."""
        for shard in range(rank, len(self), world):
            if self._read(shard) is None:
                yield shard

    def write(self, shard: int, images: Pixels) -> None:
        """Writes one, whole or not at all; images are [n, C, H, W]."""
        assert len(images) == len(self.places(shard))
        npz.write(self._path(shard), images=images)

    def read(self) -> Pixels:
        """All pictures, [N, C, H, W].

        Raises:
            UserError: a shard is not there.
        """
        parts = [self._read(shard) for shard in range(len(self))]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            raise UserError(
                f"{len(parts) - len(whole)} shards of {self.folder} are missing; run the same command again"
            )
        return np.concatenate(whole)

    def remove(self) -> None:
        """Removes them all; the drawing is done with."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npz"

    def _read(self, shard: int) -> Pixels | None:
        """A shard if it is whole: the archive's checksums are checked on the way."""
        path = self._path(shard)
        if not path.is_file():
            return None
        try:
            images = npz.read(path).images
        except UserError:
            return None
        return images if images is not None and len(images) == len(self.places(shard)) else None
