"""Many names in two arrays, whose memory forked workers share; a list of strings would be copied to each of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Names(Sequence[str]):
    """A sequence of names, which may be file names that are not UTF-8."""

    def __init__(self, names: Iterable[str]) -> None:
        """Takes any number of names."""
        text = bytearray()
        ends = [0]
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        self.text: NDArray[np.uint8] = np.frombuffer(bytes(text), np.uint8)
        self.ends: NDArray[np.int64] = np.array(ends, np.int64)

    @classmethod
    def of_arrays(cls, text: NDArray[np.uint8], ends: NDArray[np.int64]) -> Names:
        """The names that two arrays hold.

        Raises:
            ValueError: they are not such arrays.
        """
        if text.dtype != np.uint8 or ends.dtype != np.int64 or text.ndim != 1 or ends.ndim != 1 or not len(ends):
            raise ValueError("names must be bytes and their ends")
        if ends[0] != 0 or ends[-1] != len(text) or bool((np.diff(ends) < 0).any()):
            raise ValueError("the ends of the names must rise from 0 to the length of the text")
        names = cls(())
        names.text, names.ends = text, ends
        return names

    def __len__(self) -> int:
        """Number of names."""
        return len(self.ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        """Name ``i``, or the list of a slice."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i = int(i) % len(self)
        return os.fsdecode(self.text[self.ends[i] : self.ends[i + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        """In order."""
        return (self[i] for i in range(len(self)))
