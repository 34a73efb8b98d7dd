"""Step caching: some denoising steps reuse what the deep part of a network said at earlier ones.

The outer parts of a network see the present x_t at every step; the deep part, whose output changes slowly from step to
step, is run at some steps only (DeepCache, Ma et al. 2023; Skip-DiT, Chen et al. 2024). In a U the deep part is what
lies below full resolution, and long skips carry x_t past it. A network without long skips is cached by what its deep
part adds to its input (Chen et al. 2024, arXiv 2406.01125). What is kept lives in one sampling call, never in
the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from udit.diffusion.denoise import Backbone, Denoiser, Prediction
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


def seamed(backbone: Backbone) -> Seamed:
    """The backbone itself, if it comes in parts.

    Raises:
        UserError: it does not.
    """
    if not isinstance(backbone, Seamed):
        raise UserError(f"{type(backbone).__name__} has no deep part to cache; sample it without a cache")
    return backbone


def rewrap(denoise: Denoiser | Guided, change: Callable[[Backbone], Backbone]) -> Denoiser | Guided:
    """The denoiser with its innermost network changed."""
    if isinstance(denoise, Guided):
        return dataclasses.replace(denoise, denoiser=cast(Denoiser, rewrap(denoise.denoiser, change)))
    backbone = denoise.backbone
    if isinstance(backbone, Preconditioned):
        return dataclasses.replace(denoise, backbone=dataclasses.replace(backbone, backbone=change(backbone.backbone)))
    return dataclasses.replace(denoise, backbone=change(backbone))


def fields_of(guided: Guided) -> dict[str, Any]:
    """What a guided denoiser is made of, for one that does more."""
    return {each.name: getattr(guided, each.name) for each in dataclasses.fields(guided)}


@dataclass(frozen=True)
class StepCache:
    """Which calls run the deep part, and what the others take in its place.

    Attributes:
        interval: N; it runs at calls 0, N, 2 N, ... of a sampling run. 1 caches nothing.
        final_time: after a call whose times all are at or below this, in the network's own units, nothing is kept and
            the count of ``interval`` starts anew, so that the last, cleanest steps run in full. 20 of 1000 is
            Skip-DiT's; a network of unit times needs 0.02.
        refresh: the calls that run it, in place of ``interval``; 0 is the first. See ``calibrate``.
        forecast: other calls take the line through the last two that ran it, continued to their time, in place of
            what the last one said (Liu et al. 2025, arXiv 2503.06923).
        guidance: other calls of a guided denoiser run the conditional half alone and take the step from the null
            prediction to the conditional one as it was (Lv et al. 2024, arXiv 2410.19355).
    """

    interval: int = 1
    final_time: float = 20.0
    refresh: tuple[int, ...] = ()
    forecast: bool = False
    guidance: bool = False

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UserError(f"cache interval is {self.interval}; give a whole number of at least 1 (1 caches nothing)")
        if self.refresh and self.interval > 1:
            raise UserError(f"cache interval is {self.interval} and calls are named as well; give one of them")
        if self.refresh and (self.refresh[0] or sorted(set(self.refresh)) != list(self.refresh)):
            raise UserError(f"refreshed calls are {list(self.refresh)}; they begin with 0 and rise")

    def runs(self, call: int) -> bool:
        """Whether the deep part runs at a call, counted from 0."""
        return call in self.refresh if self.refresh else call % self.interval == 0

    def attach(self, backbone: Backbone) -> Backbone:
        """The backbone with an empty cache of its own, for one sampling run.

        Raises:
            UserError: the backbone has no seam.
        """
        return _Cached(seamed(backbone), self)

    def wrap(self, denoise: Denoiser | Guided) -> Denoiser | Guided:
        """The denoiser around ``attach``'s backbone."""
        denoise = rewrap(denoise, self.attach)
        if not isinstance(denoise, Guided) or not self.guidance:
            return denoise
        return _Held(**fields_of(denoise), policy=self, memory=Memory(self.forecast))


class Memory:
    """What one place said when it last ran; with ``forecast``, when it ran the last two times."""

    def __init__(self, forecast: bool) -> None:
        self.forecast = forecast
        self.last: tuple[Tensor, Tensor] | None = None
        self.slope: Tensor | None = None

    def keep(self, t: Tensor, value: Tensor) -> None:
        """value [B, ...] as it was at times t [B]."""
        before, self.last, self.slope = self.last, (t, value), None
        if self.forecast and before is not None and before[1].shape == value.shape:
            self.slope = (value - before[1]) * _rows(_inverse(t - before[0]), value)

    def recall(self, t: Tensor) -> Tensor | None:
        """What it is taken to say at times t [B]; None if it cannot be told.

        Of a batch twice as large it is the first half: the conditional one, which goes on where guidance ends.
        """
        if self.last is None:
            return None
        then, value = self.last
        if len(value) not in (len(t), 2 * len(t)):
            return None
        then, value = then[: len(t)], value[: len(t)]
        return value if self.slope is None else value + self.slope[: len(t)] * _rows(t - then, value)


def _inverse(dt: Tensor) -> Tensor:
    """1 / dt, and 0 where a sampler asked twice at one time."""
    dt = dt.double()
    return torch.where(dt == 0, 0.0, 1 / dt)


def _rows(factors: Tensor, like: Tensor) -> Tensor:
    return factors.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


class _Cached:
    """A backbone that remembers, for one sampling run."""

    def __init__(self, network: Seamed, policy: StepCache) -> None:
        self.network = network
        self.policy = policy
        self.calls = 0
        self.memory = Memory(policy.forecast)
        self.shape: torch.Size | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As the network; x of another shape than the kept one's (guidance sets in) runs in full."""
        cond = self.network.condition(t, y)
        entered, skips = self.network.enter(x, cond)
        kept = None
        if not self.policy.runs(self.calls) and self.shape == entered.shape[1:]:
            kept = self.memory.recall(t)
        if kept is None:
            deep, self.shape = self.network.deep(entered, cond), entered.shape[1:]
            self.memory.keep(t, deep if skips is not None else deep - entered)
        else:
            deep = kept if skips is not None else entered + kept
        self.calls += 1
        out = self.network.leave(deep, skips, cond)
        if self.policy.interval > 1 and bool((t <= self.policy.final_time).all()):
            self.calls, self.memory = 0, Memory(self.policy.forecast)
        return out


@dataclass(frozen=True)
class _Held(Guided):
    """A guided denoiser that remembers where labels led it, for one sampling run."""

    policy: StepCache = field(kw_only=True)
    calls: list[int] = field(kw_only=True, default_factory=lambda: [-1])
    memory: Memory = field(kw_only=True)

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """As ``Guided``; calls outside the interval count, too."""
        self.calls[0] += 1
        return super().__call__(x_t, t, y)

    def halves(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``Guided``, the null prediction often by memory."""
        led = None if self.policy.runs(self.calls[0]) else self.memory.recall(t)
        if led is None:
            cond, uncond, variance = super().halves(x_t, t, y)
            self.memory.keep(t, cond - uncond)
            return cond, uncond, variance
        cond, variance = self.denoiser.raw(x_t, t, y)
        return cond, cond - led, variance
