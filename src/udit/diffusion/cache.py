"""Step caching: some denoising steps reuse the output of a network's deep part from earlier ones.

The outer parts of a network see the present x_t at every step; the deep part, whose output changes slowly from step to
step, runs at some steps only (DeepCache, Ma et al. 2023; Skip-DiT, Chen et al. 2024). In a U the deep part is all below
full resolution, and long skips carry x_t past it. Of a network without long skips, what the deep part adds to its input
is kept (Chen et al. 2024, arXiv 2406.01125). What is kept belongs to one sampling call, never to the network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from udit.diffusion.denoiser import Backbone, Prediction
from udit.diffusion.guidance import AnyDenoiser, Guided
from udit.diffusion.schedule import known
from udit.errors import UserError


@runtime_checkable
class SplitBackbone(Protocol):
    """A backbone in parts: ``leave(deep(entered, cond), skips, cond)``, where ``entered, skips = enter(x, cond)``."""

    def condition(self, t: Tensor, y: Tensor | None = None, /) -> Any:
        """All that depends on t [B] and y [B] alone."""

    def enter(self, x: Tensor, cond: Any, /) -> tuple[Tensor, Any]:
        """x [B, C, H, W] -> the input of ``deep``, and the skips (None, or sizes alone, if the network has none)."""

    def deep(self, x: Tensor, cond: Any, /) -> Tensor:
        """The part whose output is cached."""

    def leave(self, x: Tensor, skips: Any, cond: Any, /) -> Tensor:
        """-> [B, out_channels, H, W]."""


def split(backbone: Backbone) -> SplitBackbone:
    """The backbone itself, if it comes in parts.

    Raises:
        UserError: it does not.
    """
    if not isinstance(backbone, SplitBackbone):
        raise UserError(f"{type(backbone).__name__} has no deep part to cache; sample it without a cache")
    return backbone


def carries(skips: Any) -> bool:
    """Whether skips take the present input past the deep part: None does not, and a tuple of sizes does not."""
    return not (skips is None or (isinstance(skips, tuple) and all(isinstance(part, int) for part in skips)))


def fields_of(guided: Guided) -> dict[str, Any]:
    """The fields of a guided denoiser, for a subclass that does more."""
    return {each.name: getattr(guided, each.name) for each in dataclasses.fields(guided)}


@dataclass(frozen=True)
class StepCache:
    """Which calls run the deep part, and what the others use instead.

    Attributes:
        interval: N; it runs at calls 0, N, 2 N, ... of a sampling run. 1 caches nothing.
        final_time: after a call whose times all are at or below this, in the network's own units, nothing is kept and
            the count of ``interval`` restarts, so that the last, cleanest steps run in full. 20 of 1000 is Skip-DiT's;
            a network of unit times needs 0.02.
        refresh: the calls that run it, in place of ``interval``; 0 is the first. See ``calibrate``.
        forecast: other calls extrapolate linearly to their time from its last two outputs, instead of reusing the last
            (Liu et al. 2025, arXiv 2503.06923).
        guidance: other calls of a guided denoiser run the conditional half alone and reuse the last difference between
            the conditional and the null prediction (Lv et al. 2024, arXiv 2410.19355).
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
            raise UserError(
                f"refreshed calls are {list(self.refresh)}; they must start with 0 and each must be larger than the "
                "one before, e.g. [0, 3, 6]"
            )

    def runs(self, call: int) -> bool:
        """Whether the deep part runs at a call, counted from 0."""
        return call in self.refresh if self.refresh else call % self.interval == 0

    def attach(self, backbone: Backbone, calls: int = 0) -> Backbone:
        """The backbone with an empty cache of its own, for one sampling run whose first ``calls`` calls are left out.

        Raises:
            UserError: the backbone does not come in parts.
        """
        return _CachedBackbone(split(backbone), self, calls)

    def wrap(self, denoiser: AnyDenoiser, calls: int = 0) -> AnyDenoiser:
        """The denoiser around ``attach``'s backbone, with cached guidance where that is asked for."""
        denoiser = denoiser.with_network(lambda backbone: self.attach(backbone, calls))
        if not isinstance(denoiser, Guided) or not self.guidance:
            return denoiser
        state = _GuidanceState(Memory(self.forecast), calls - 1)
        return CachedGuidance(**fields_of(denoiser), policy=self, state=state)


class Memory:
    """The last output of one part of a network; with ``forecast``, the last two."""

    def __init__(self, forecast: bool) -> None:
        self.forecast = forecast
        self.last: tuple[Tensor, Tensor] | None = None
        self.slope: Tensor | None = None

    def keep(self, t: Tensor, value: Tensor) -> None:
        """Stores value [B, ...] of times t [B]."""
        before, self.last, self.slope = self.last, (t, value), None
        if self.forecast and before is not None and before[1].shape == value.shape:
            self.slope = (value - before[1]) * _per_sample(_inverse(t - before[0]), value)

    def recall(self, t: Tensor) -> Tensor | None:
        """The stored value, or the extrapolated one, for times t [B]; None if there is none of this batch.

        Of a batch twice as large it is the first half: the conditional one, which goes on where guidance ends.
        """
        if self.last is None:
            return None
        then, value = self.last
        if len(value) not in (len(t), 2 * len(t)):
            return None
        then, value = then[: len(t)], value[: len(t)]
        return value if self.slope is None else value + self.slope[: len(t)] * _per_sample(t - then, value)


def _inverse(dt: Tensor) -> Tensor:
    """1 / dt, and 0 where a sampler asks twice at one time."""
    dt = dt.double()
    return torch.where(dt == 0, 0.0, 1 / dt)


def _per_sample(factors: Tensor, like: Tensor) -> Tensor:
    return factors.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


class _CachedBackbone:
    """A backbone with a cache, for one sampling run."""

    def __init__(self, network: SplitBackbone, policy: StepCache, calls: int) -> None:
        self.network = network
        self.policy = policy
        self.calls = calls
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
            self.memory.keep(t, deep if carries(skips) else deep - entered)
        else:
            deep = kept if carries(skips) else entered + kept
        self.calls += 1
        out = self.network.leave(deep, skips, cond)
        if self.policy.interval > 1 and bool((known(t) <= self.policy.final_time).all()):
            self.calls, self.memory = 0, Memory(self.policy.forecast)
        return out


@dataclass
class _GuidanceState:
    """What ``CachedGuidance`` keeps during one sampling run."""

    differences: Memory
    """Conditional minus null prediction."""
    call: int = -1
    """The present call, counted from 0."""


@dataclass(frozen=True)
class CachedGuidance(Guided):
    """A guided denoiser that reuses the difference of conditional and null prediction, for one sampling run."""

    policy: StepCache = field(kw_only=True)
    state: _GuidanceState = field(kw_only=True)

    def predict(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        """As ``Guided``; calls outside the interval are counted too."""
        self.state.call += 1
        return super().predict(x_t, t, y)

    def halves(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``Guided``; between refreshes the null prediction is the conditional one minus the kept difference."""
        difference = None if self.policy.runs(self.state.call) else self.state.differences.recall(t)
        if difference is None:
            cond, uncond, variance = super().halves(x_t, t, y)
            self.state.differences.keep(t, cond - uncond)
            return cond, uncond, variance
        cond, variance = self.denoiser.raw(x_t, t, y)
        return cond, cond - difference, variance
