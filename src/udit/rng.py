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
from udit.spec.base import MAX_SEED


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


def seeds_of(values: Sequence[int]) -> list[int]:
    """Seeds as plain numbers.

    Raises:
        UserError: no list, an empty one, or one with something else than whole numbers from 0 to ``MAX_SEED``.
    """
    seeds = []
    for value in as_list("seeds", values):
        try:
            seed = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            seed = -1
        if not 0 <= seed <= MAX_SEED:
            raise UserError(f"seeds has {value!r}; seeds are whole numbers from 0 to {MAX_SEED}, e.g. range(16)")
        seeds.append(seed)
    if not seeds:
        raise UserError(f"seeds is {values!r}; give one for each image, at least 1")
    return seeds
