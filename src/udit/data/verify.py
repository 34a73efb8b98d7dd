"""Decodes every image once before the first step, and remembers which data sets have passed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from udit.data.sources import Labels, Pixels
from udit.errors import UserError
from udit.progress import progress_bar

T = TypeVar("T")
MAX_MEMORY = 2**30
"""Bytes up to which a decoded data set is kept in memory."""


def attempts(action: Callable[[int], T], count: int, title: str = "decoding") -> Iterator[T | UserError]:
    """What an action on each of ``count`` images returns or raises, in order; run by threads, with a progress bar."""

    def attempt(i: int) -> T | UserError:
        try:
            return action(i)
        except UserError as error:
            return error

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        progress_bar(count, title, "image", leave=False) as bar,
    ):
        # in slices: map() would queue all of ImageNet at once
        for start in range(0, count, 256):
            for result in pool.map(attempt, range(start, min(start + 256, count))):
                yield result
                bar.update()


def verified(
    ends: Labels,
    decode: Callable[[int], Pixels],
    peek: Callable[[int], object] | None,
    mark: Path,
    dtype: type[np.generic] = np.uint8,
) -> Pixels | None:
    """Decodes every image once; returns all, one after another in a flat array, if they fit into ``MAX_MEMORY``.

    Args:
        ends: [N + 1] where each image begins and the last one ends in that array, in numbers.
        decode: reads image i.
        peek: called instead of ``decode`` where the images do not fit into memory; None decodes them all the same.
        mark: a file whose presence says that they have all been decoded before; images that do not fit into memory are
            not decoded again then. Written when all of them could be decoded.
        dtype: of the images.

    Raises:
        UserError: images that cannot be decoded; names the first and counts them.
    """
    count, fits = len(ends) - 1, int(ends[-1]) * np.dtype(dtype).itemsize <= MAX_MEMORY
    keep: Pixels | None = np.empty(int(ends[-1]), dtype) if fits else None
    if keep is None and peek is None and mark.exists():
        return None
    first, bad = "", 0
    action: Callable[[int], object] = peek if keep is None and peek is not None else decode
    for i, result in enumerate(attempts(action, count)):
        if isinstance(result, UserError):
            first, bad = first or str(result), bad + 1
        elif keep is not None:
            keep[ends[i] : ends[i + 1]] = np.ravel(result)  # type: ignore[call-overload]
    if bad:
        more = f" ({bad} of {count} images are unusable)" if bad > 1 else ""
        raise UserError(first + more)
    if keep is None and peek is None:
        remember(mark)
    return keep


def remember(mark: Path) -> None:
    """Writes a marker file; a cache that cannot be written is not an error."""
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
