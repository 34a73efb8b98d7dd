"""A network that computes in half precision wherever it is called from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udit.diffusion.cache import SplitBackbone
from udit.diffusion.denoiser import Backbone


class Autocast:
    """A network under autocast to bfloat16; samplers and guidance around it stay in float32."""

    def __init__(self, network: Backbone, device: str) -> None:
        """Takes a network and its type of device."""
        self.network = network
        self.device = device

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As the network, [B, C_out, H, W]."""
        with torch.autocast(self.device, torch.bfloat16):
            return self.network(x, t, y)


class SplitAutocast(Autocast):
    """The same of a network that comes in parts."""

    network: Any

    def condition(self, t: Tensor, y: Tensor | None = None) -> Any:
        """As the network's."""
        with torch.autocast(self.device, torch.bfloat16):
            return self.network.condition(t, y)

    def enter(self, x: Tensor, cond: Any) -> Any:
        """As the network's."""
        with torch.autocast(self.device, torch.bfloat16):
            return self.network.enter(x, cond)

    def deep(self, x: Tensor, cond: Any) -> Any:
        """As the network's."""
        with torch.autocast(self.device, torch.bfloat16):
            return self.network.deep(x, cond)

    def leave(self, x: Tensor, skips: Any, cond: Any) -> Any:
        """As the network's."""
        with torch.autocast(self.device, torch.bfloat16):
            return self.network.leave(x, skips, cond)


def autocast(network: Backbone, device: torch.device) -> Backbone:
    """The network in bfloat16 on its device, in parts if it comes so."""
    return (SplitAutocast if isinstance(network, SplitBackbone) else Autocast)(network, device.type)
