"""The order of training images: a pure function of (seed, position), where positions count the images drawn so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from udit import rng
from udit.errors import UserError

MAX_CYCLE = 2**20
"""Steps of which the buckets are drawn at a time."""


class Order:
    """An infinite stream of indices 0..count-1; every epoch is a new permutation."""

    def __init__(self, count: int, seed: int) -> None:
        """Takes the number of images and the run's seed.

        Raises:
            UserError: there are no images.
        """
        if count < 1:
            raise UserError("there are no images to train on; add some, or lower data.judge_share and data.test_share")
        self.count = count
        self.seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, position: int) -> int:
        """The index at a position >= 0."""
        epoch, place = divmod(position, self.count)
        if epoch not in self._epochs:
            if len(self._epochs) == 2:  # a batch may span two epochs
                del self._epochs[min(self._epochs)]
            order = torch.randperm(self.count, generator=rng.generator(self.seed, "order", epoch))
            self._epochs[epoch] = order.numpy()  # whose elements are read ten times as fast as a tensor's
        return int(self._epochs[epoch][place])


class BucketOrder:
    """An infinite stream of indices whose ``batch`` indices of a step are all of one bucket.

    Steps come in cycles. In a cycle each bucket has as many steps as it has images, so that each image is seen
    ``batch`` times; their permutation is new in each cycle. Within a bucket images come in an ``Order`` of its own, so
    that none is left out or repeated. Of more than ``MAX_CYCLE`` images, steps are rounded shares of so many.
    """

    def __init__(self, members: Sequence[NDArray[np.int64]], seed: int, batch: int) -> None:
        """Takes the indices of each bucket's images, none of them empty, the run's seed and the images of a step."""
        self.members, self.seed, self.batch = members, seed, batch
        self._orders = [Order(len(own), rng.key(seed, "bucket", number)) for number, own in enumerate(members)]
        count = sum(map(len, members))
        scale = min(1, MAX_CYCLE / count)
        self._steps = np.array([max(1, round(scale * len(own))) for own in members])
        self._cycles: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def bucket(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and how many steps before had it."""
        cycle, place = divmod(step, int(self._steps.sum()))
        if cycle not in self._cycles:
            if len(self._cycles) == 2:  # a reader may be ahead
                del self._cycles[min(self._cycles)]
            self._cycles[cycle] = self._drawn(cycle)
        buckets, earlier = self._cycles[cycle]
        number = int(buckets[place])
        return number, cycle * int(self._steps[number]) + int(earlier[place])

    def _drawn(self, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The bucket of each step of a cycle, and how many steps of it before had the same."""
        every = np.repeat(np.arange(len(self._steps)), self._steps)
        shuffled = every[torch.randperm(len(every), generator=rng.generator(self.seed, "buckets", cycle)).numpy()]
        earlier = np.empty_like(shuffled)
        for number, count in enumerate(self._steps):
            earlier[shuffled == number] = np.arange(count)
        return shuffled, earlier

    def __getitem__(self, position: int) -> int:
        """The index at a position >= 0."""
        step, place = divmod(position, self.batch)
        number, before = self.bucket(step)
        return int(self.members[number][self._orders[number][before * self.batch + place]])


def indices(count: int, seed: int, positions: Sequence[int]) -> list[int]:
    """The indices at some positions of ``Order(count, seed)``."""
    order = Order(count, seed)
    return [order[position] for position in positions]


def crops(count: int, seed: int, positions: Sequence[int]) -> list[int]:
    """Which of ``count`` crops the image at each position is."""
    return [rng.key(seed, "crop", position) % count for position in positions]


def flips(seed: int, positions: Sequence[int]) -> list[bool]:
    """Whether the image at each position is mirrored; half of them are."""
    return [rng.key(seed, "flip", position) & 1 == 1 for position in positions]
