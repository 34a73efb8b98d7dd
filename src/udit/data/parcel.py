"""Tensors on their way from one process to another, in one piece of memory.

Between processes torch hands over each tensor as a file descriptor, which the receiver fetches through a socket: for
the six tensors of a small batch that takes longer than reading its images. Many tensors in one piece take one
descriptor, and a small piece none, as it goes through the pipe that announces it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PIPE = 2**16
"""Bytes that a pipe holds on Linux, so that the process that writes them need not wait for the reader."""
ALIGNED = 64
"""Each tensor begins at a multiple of so many bytes, as torch's own do."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the piece, and what it is."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past its last byte."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


class Parcel:
    """Named tensors in one piece of memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies them."""
        self._places: dict[str, Place] = {}
        end = 0
        for name, tensor in tensors.items():
            place = Place(-(-end // ALIGNED) * ALIGNED, tensor.dtype, tuple(tensor.shape))
            self._places[name], end = place, place.stop
        piece = torch.empty(end, dtype=torch.uint8)
        for name, view in self._views(piece):
            view.copy_(tensors[name])
        self._piece: Tensor | bytearray = piece if end > PIPE else bytearray(piece.numpy())

    def tensors(self, pin: bool = False) -> dict[str, Tensor]:
        """The tensors, which share memory; ``pin`` for memory from which a GPU copies while the host goes on."""
        piece = self._piece
        if isinstance(piece, bytearray):  # copied to where torch would have put it, aligned
            piece = torch.empty(len(piece), dtype=torch.uint8).copy_(torch.frombuffer(piece, dtype=torch.uint8))
        return dict(self._views(piece.pin_memory() if pin else piece))

    def _views(self, piece: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, place in self._places.items():
            yield name, piece[place.start : place.stop].view(place.dtype).view(place.shape)
