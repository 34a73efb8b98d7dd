"""Step caching for U-shaped backbones: some denoising steps reuse what the deep part said at an earlier one.

Long skips make it possible: the shallow ends still see the present x_t, and the deep part, whose output changes slowly
from step to step, is run at every N-th step only (DeepCache, Ma et al. 2023; Skip-DiT, Chen et al. 2024). What is kept
lives in one sampling call, never in the network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from udit.diffusion.denoise import Backbone, Denoiser
from udit.diffusion.edm import Preconditioned
from udit.diffusion.guidance import Guided
from udit.errors import UserError


@runtime_checkable
class Seamed(Protocol):
    """A backbone in parts: ``leave(deep(entered, cond), skips, cond)``, where ``entered, skips = enter(x, cond)``."""

    def condition(self, t: Tensor, y: Tensor | None = None, /) -> Any:
        """All that depends on t [B] and y [B] alone."""

    def enter(self, x: Tensor, cond: Any, /) -> tuple[Tensor, Any]:
        """x [B, C, H, W] -> what ``deep`` takes, and the skips (None if the network has none)."""

    def deep(self, x: Tensor, cond: Any, /) -> Tensor:
        """The part that is worth keeping."""

    def leave(self, x: Tensor, skips: Any, cond: Any, /) -> Tensor:
        """-> [B, out_channels, H, W]."""


@dataclass(frozen=True)
class StepCache:
    """How often the deep part runs.

    Attributes:
        interval: N; it runs at calls 0, N, 2 N, ... of a sampling run. 1 caches nothing.
        final_time: after a call whose times all are at or below this, in the network's own units, nothing is kept and
            the count starts anew, so that the last, cleanest steps run in full. 20 of 1000 is Skip-DiT's; a network of
            unit times needs 0.02.
    """

    interval: int
    final_time: float = 20.0

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UserError(f"cache interval is {self.interval}; give a whole number of at least 1 (1 caches nothing)")

    def attach(self, backbone: Backbone) -> Backbone:
        """The backbone with an empty cache of its own, for one sampling run.

        Raises:
            UserError: the backbone has no seam.
        """
        if isinstance(backbone, Preconditioned):
            return dataclasses.replace(backbone, backbone=self.attach(backbone.backbone))
        if not isinstance(backbone, Seamed):
            raise UserError(f"{type(backbone).__name__} has no deep part to cache; sample it without a cache")
        return _Cached(backbone, self)

    def wrap(self, denoise: Denoiser | Guided) -> Denoiser | Guided:
        """The denoiser around ``attach``'s backbone."""
        if isinstance(denoise, Guided):
            return dataclasses.replace(denoise, denoiser=cast(Denoiser, self.wrap(denoise.denoiser)))
        return dataclasses.replace(denoise, backbone=self.attach(denoise.backbone))


class _Cached:
    """A backbone that remembers, for one sampling run."""

    def __init__(self, network: Seamed, policy: StepCache) -> None:
        self.network = network
        self.policy = policy
        self.calls = 0
        self.kept: tuple[torch.Size, Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As the network; x of another shape than the kept one's (guidance sets in) runs in full."""
        cond = self.network.condition(t, y)
        entered, skips = self.network.enter(x, cond)
        if skips is None:
            raise UserError(
                f"{type(self.network).__name__} has no long skips, so that a cached step would not see x_t; sample it "
                "without a cache"
            )
        if self.kept is None or self.kept[0] != entered.shape or self.calls % self.policy.interval == 0:
            self.kept = (entered.shape, self.network.deep(entered, cond))
        self.calls += 1
        out = self.network.leave(self.kept[1], skips, cond)
        if self.policy.interval > 1 and bool((t <= self.policy.final_time).all()):
            self.calls, self.kept = 0, None
        return out
