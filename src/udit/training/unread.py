"""A step of a training whose numbers may still be on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from udit.data.batches import Batch


@dataclass(frozen=True)
class Unread:
    """A step whose numbers may still be on the device."""

    step: int
    """Steps done before it."""
    numbers: Tensor
    """As ``Learner._numbers`` makes them."""
    micro_batches: list[Batch]
    per_sample: Tensor
    has_vb: bool
    copied: torch.cuda.Event | None = None
    """After which the numbers are on the host."""

    def on_its_way(self) -> Unread:
        """The same, with a copy to the host begun."""
        if self.numbers.device.type != "cuda":
            return self
        numbers = self.numbers.to("cpu", non_blocking=True)  # into pinned memory
        return replace(self, numbers=numbers, copied=torch.cuda.current_stream().record_event())

    @cached_property
    def values(self) -> list[float]:
        """The norm, and then the other numbers in their order; waits for them."""
        if self.copied is not None:
            self.copied.synchronize()
        *shared, norm = self.numbers.tolist()
        return [norm, *shared]

    @property
    def bad(self) -> bool:
        """Whether a loss or gradient of any rank is not finite."""
        return self.values[1] > 0

    @property
    def high(self) -> bool:
        """Whether loss or gradient norm exceeds its bound."""
        norm, _, _, _, loss, _, _, _, most_loss, most_norm = self.values
        return loss > most_loss or norm > most_norm
