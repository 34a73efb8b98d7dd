"""Stateless randomness: every draw is a pure function of (seed, purpose, indices).

No generator state is ever saved: after resuming, on another number of ranks or at another batch size, the same keys
give the same numbers (the idea of EDM2's training loop, Karras et al. 2024, applied to every draw).
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from udit.errors import UserError, as_list
from udit.interpolation import Between
from udit.spec.base import MAX_SEED

Seed = int | Between[int]
"""A seed, or a point between two."""


def key(seed: int, purpose: str, *index: int) -> int:
    """63-bit key of (seed, purpose, indices); any change gives an unrelated key.

    No purpose may end in a slash and a number.
    """
    text = "/".join([str(int(seed)), purpose, *(str(int(i)) for i in index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A fresh CPU generator for one purpose; CPU so that every device gets the same numbers."""
    return torch.Generator().manual_seed(key(seed, purpose, *index))


def normal(shape: Sequence[int], seed: int, purpose: str, *index: int) -> Tensor:
    """Standard normal float32 noise of ``shape`` for one key."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose, *index))


def normal_at(shape: Sequence[int], seed: Seed, purpose: str, *index: int) -> Tensor:
    """As ``normal``; at a point between two seeds, spherically interpolated (Shoemake 1985) in float64.

    The direction turns evenly on the great circle through both draws, and the norm passes evenly from the one's to the
    other's: about sqrt(dimensions) all along, as of noise. On the straight line the middle would be shorter by sqrt(2).
    """
    if not isinstance(seed, Between):
        return normal(shape, seed, purpose, *index)
    a, b = (normal(shape, end, purpose, *index).double() for end in (seed.first, seed.second))
    share, one, two = seed.share, a / a.norm(), b / b.norm()
    angle = (one * two).sum().clamp(-1, 1).acos()
    if float(angle.sin()) < 1e-6:  # the same seed, or opposite draws: no circle is decided, and the line serves
        return a.lerp(b, share).float()
    direction = (((1 - share) * angle).sin() * one + (share * angle).sin() * two) / angle.sin()
    return (direction * ((1 - share) * a.norm() + share * b.norm())).float()


def seeds_of(values: Sequence[Seed]) -> list[Seed]:
    """Seeds as plain numbers, points between two as they are.

    Raises:
        UserError: no list, an empty one, or one with something else than whole numbers from 0 to ``MAX_SEED``.
    """
    seeds: list[Seed] = []
    for value in as_list("seeds", values):
        if isinstance(value, Between):
            seeds.append(Between(_seed(value.first), _seed(value.second), value.share))
        else:
            seeds.append(_seed(value))
    if not seeds:
        raise UserError(f"seeds is {values!r}; give one for each image, at least 1")
    return seeds


def _seed(value: object) -> int:
    try:
        seed = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        seed = -1
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seeds has {value!r}; seeds are whole numbers from 0 to {MAX_SEED}, e.g. range(16)")
    return seed
