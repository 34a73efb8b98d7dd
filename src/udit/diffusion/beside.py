"""A network that sees a condition beside x_t: the state of a simulation before, an image to enlarge, fill in or colour.

The condition is further channels of the input, which stay as they are at every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udit.diffusion.cache import SplitBackbone
from udit.diffusion.denoiser import Backbone
from udit.errors import UserError


class Beside:
    """A backbone around a network with more channels in than out; comes in parts where the network does."""

    def __init__(self, network: Backbone, condition: Tensor) -> None:
        """Takes the network and the condition of each image, [B, Cc, H, W]."""
        self.network, self.image = network, condition
        if isinstance(network, SplitBackbone):
            self.condition, self.deep, self.leave, self.enter = (
                network.condition,
                network.deep,
                network.leave,
                self._enter,
            )

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], or [2 B, C, H, W] of two predictions for each image, as guidance asks for them."""
        return self.network(self._joined(x), t, y)

    def _enter(self, x: Tensor, cond: Any) -> tuple[Tensor, Any]:
        assert isinstance(self.network, SplitBackbone)
        return self.network.enter(self._joined(x), cond)

    def _joined(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C + Cc, H, W]."""
        image = self.image.to(x.dtype).repeat(len(x) // len(self.image), 1, 1, 1)
        return torch.cat([x, image], dim=1)


def check_condition(condition: Tensor | None, shape: Sequence[int]) -> None:
    """Refuses a condition of another shape than [B, Cc, H, W], and none where a network sees Cc channels.

    Raises:
        UserError: it is.
    """
    if condition is None and shape[1]:
        raise UserError(
            f"the model sees {shape[1]} channels beside the noisy image and was given none; pass condition, of "
            "System.condition_of, or --condition FILE to `udit sample`"
        )
    if condition is not None and list(condition.shape) != list(shape):
        raise UserError(f"condition is {list(condition.shape)} and the model takes {list(shape)} for {shape[0]} images")
