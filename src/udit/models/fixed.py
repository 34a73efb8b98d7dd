"""Tensors that a release stores and this library computes: position tables, filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from udit.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fixed:
    """A constant of the release.

    Attributes:
        value: computes it, float32, in the release's shape up to a reshape.
        parameter: the release has it as a frozen parameter, which counts as one; otherwise as a buffer.
    """

    value: Callable[[], Tensor]
    parameter: bool

    def check(self, key: str, stored: Tensor) -> None:
        """Refuses a stored tensor that differs from the constant by more than its dtype's rounding.

        Raises:
            UserError: it differs; importing it would silently change the model.
        """
        stored = stored if stored.is_floating_point() else stored.float()
        computed = self.value().reshape(stored.shape).to(stored.dtype).double()
        error = (stored.double().cpu() - computed).abs().max().item()
        limit = 4 * torch.finfo(stored.dtype).eps * max(1.0, computed.abs().max().item())
        if error > limit:
            raise UserError(
                f"{key} differs by {error:.1e} from the fixed table that this model computes; build the model of the "
                "weights' own input size"
            )


class Unused(str):
    """Our key of a tensor that the release has as a parameter and never uses; here it is a buffer, stored unchanged."""


Keys = Mapping[str, tuple[str | Fixed, Shape]]
"""{published key: (our key or the constant, published shape)} in the release's order."""
Row = tuple[str, str | Fixed, Shape]


def both(key: str, name: str, shape: Shape) -> Iterator[Row]:
    """Rows of a layer's weight (of ``shape``) and bias."""
    yield f"{key}.weight", f"{name}.weight", shape
    yield f"{key}.bias", f"{name}.bias", shape[:1]
