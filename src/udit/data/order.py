"""The order of training images: a pure function of (seed, position), where positions count the images drawn so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from udit import rng
from udit.errors import UserError


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
        self._epochs: dict[int, Tensor] = {}

    def __getitem__(self, position: int) -> int:
        """The index at a position >= 0."""
        epoch, place = divmod(position, self.count)
        if epoch not in self._epochs:
            if len(self._epochs) == 2:  # a batch may span two epochs
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = torch.randperm(self.count, generator=rng.generator(self.seed, "order", epoch))
        return int(self._epochs[epoch][place])


def indices(count: int, seed: int, positions: Sequence[int]) -> list[int]:
    """The indices at some positions of ``Order(count, seed)``."""
    order = Order(count, seed)
    return [order[position] for position in positions]


def flips(seed: int, positions: Sequence[int]) -> list[bool]:
    """Whether the image at each position is mirrored; half of them are."""
    return [rng.key(seed, "flip", position) & 1 == 1 for position in positions]
