"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from udit.models.build import rebuild


def decay_at(step: int, decay: float) -> float:
    """Decay of update number ``step`` (from 1): (1 + step) / (10 + step) until that exceeds ``decay``."""
    return min(decay, (1 + step) / (10 + step))


class EMA:
    """A second network with the averaged weights; the trained network keeps its own."""

    def __init__(self, model: nn.Module) -> None:
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.model = rebuild(model.config, state).eval().requires_grad_(False)  # type: ignore[arg-type]
        self._trained: tuple[nn.Module, list[nn.Parameter]] = model, list(model.parameters())
        self._own = list(self.model.parameters())

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float) -> None:
        """Sets average = decay * average + (1 - decay) * weights; buffers are copied."""
        if self._trained[0] is not model:
            self._trained = model, list(model.parameters())
        get_ema_multi_avg_fn(decay)(self._own, self._trained[1], 0)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def take(self, model: nn.Module, average: Callable[[nn.Parameter], Tensor]) -> None:
        """Sets it to an average of each parameter that is kept elsewhere; buffers are copied."""
        for parameter, trained in zip(self.model.parameters(), model.parameters(), strict=True):
            parameter.copy_(average(trained))
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    def load(self, state: dict[str, Tensor]) -> None:
        """Loads the average of a checkpoint."""
        self.model.load_state_dict(state, strict=True)
