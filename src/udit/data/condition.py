"""Conditions: what a network sees beside the noisy image, made of images that it is to generate.

All work on what the network sees of an image, float32 [B, C, H, W] of about unit size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from udit import rng

Keys = Sequence[tuple[int, int]]
"""(seed, position in the run) of each image."""


class Condition(Protocol):
    """Images to what is seen beside them."""

    def __call__(self, x0: Tensor, before: Tensor | None, keys: Keys) -> Tensor:
        """x0 [B, C, H, W], the states before as x0 where there are any, a key for each -> [B, channels, H, W]."""


class Previous:
    """The state before."""

    def __call__(self, x0: Tensor, before: Tensor | None, keys: Keys) -> Tensor:
        """``before``."""
        assert before is not None, "the run's rules refuse other data"
        return before


class Averaged:
    """Means of squares of ``factor`` pixels a side, each as large as its square."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x0: Tensor, before: Tensor | None, keys: Keys) -> Tensor:
        """As many channels."""
        small = F.avg_pool2d(x0, self.factor)
        return small.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


class Masked:
    """The image with a rectangle of zeros, and a channel that is 1 there."""

    def __init__(self, smallest: float, largest: float) -> None:
        self.smallest, self.largest = smallest, largest

    def __call__(self, x0: Tensor, before: Tensor | None, keys: Keys) -> Tensor:
        """One channel more; the rectangle of each image is drawn by its key."""
        hidden = torch.zeros_like(x0[:, :1])
        for place, key in zip(hidden, keys, strict=True):
            sides, corner = torch.rand(2, 2, generator=rng.generator(key[0], "mask", key[1])).tolist()
            spans = []
            for share, start, length in zip(sides, corner, x0.shape[2:], strict=True):
                size = max(1, round((self.smallest + share * (self.largest - self.smallest)) * length))
                first = min(int(start * (length - size + 1)), length - size)
                spans.append(slice(first, first + size))
            place[0, spans[0], spans[1]] = 1
        return torch.cat([x0 * (1 - hidden), hidden], dim=1)


class Luminance:
    """The mean of the channels."""

    def __call__(self, x0: Tensor, before: Tensor | None, keys: Keys) -> Tensor:
        """One channel."""
        return x0.mean(dim=1, keepdim=True)
