"""The way back: one loop that yields every step, and the exact samplers: ADM's ancestral step, DDIM, EDM's two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from udit import rng
from udit.diffusion.cache import StepCache
from udit.diffusion.config import SAMPLERS
from udit.diffusion.denoise import Denoiser, Prediction
from udit.diffusion.guidance import Guided
from udit.diffusion.objective import ancestral_moments
from udit.diffusion.schedule import DDPM, EDM, gather
from udit.errors import UserError, nearest

Denoise = Denoiser | Guided
Noise = Callable[[int], Tensor]
"""k -> [B, C, H, W] standard normal for the k-th step taken; k = 1 is the first and noisiest."""


@dataclass(frozen=True)
class Step:
    """What one step left."""

    index: int
    """1 for the first step."""
    total: int
    x: Tensor
    """[B, C, H, W]; after the last step, the samples."""
    x0: Tensor
    """[B, C, H, W] the model's guess of them at this step: a preview."""


class Sampler(Protocol):
    """Walks from noise to data."""

    def __call__(self, denoise: Denoise, x: Tensor, steps: int | str, y: Tensor | None, noise: Noise) -> Iterator[Step]:
        """Yields after every step."""


class SeededNoise:
    """Noise per image seed: image i is the same image in any batch, on any rank."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds = list(seeds)
        self.shape = tuple(shape)
        self.device = device

    def __call__(self, k: int) -> Tensor:
        """k = 0 is x_T, k >= 1 the k-th step's noise; [B, C, H, W] for (C, H, W) as given."""
        return torch.stack([rng.normal(self.shape, seed, "sample", k) for seed in self.seeds]).to(self.device)


def sample(
    denoise: Denoise,
    x_T: Tensor,
    *,
    scheduler: str | Sampler = "ddim",
    steps: int | str = 50,
    y: Tensor | None = None,
    noise: Noise | None = None,
    cache: StepCache | None = None,
) -> Iterator[Step]:
    """Draws samples; iterate to the end and take the last step's ``x``.

    Args:
        denoise: a ``Denoiser`` or ``Guided``.
        x_T: [B, C, H, W] standard normal.
        scheduler: a name, of ``SAMPLERS``, or a sampler.
        steps: network evaluations; ddpm and ddim also take ADM's respacing strings, e.g. ``"ddim50"``.
        y: [B] int64 labels or None.
        noise: fresh noise by step, for samplers that use it; without one, they refuse.
        cache: reuses the deep part of the network over some steps; see ``StepCache``.

    Raises:
        UserError: unknown sampler, one that does not fit the schedule, labels out of range, or a cache for a network
            that has no parts.
    """
    denoise.check_labels(y)
    denoise = cache.wrap(denoise) if cache else denoise
    sampler = make_sampler(scheduler) if isinstance(scheduler, str) else scheduler
    with torch.no_grad():
        yield from sampler(denoise, x_T, steps, y, noise or _no_noise)


def _no_noise(k: int) -> Tensor:
    raise UserError(f"step {k} draws fresh noise; pass noise=SeededNoise(seeds, shape) to sample()")


def make_sampler(name: str, *, eta: float = 0.0, clip: bool = False) -> Sampler:
    """The sampler of a name.

    Args:
        name: see ``sample``.
        eta: DDIM's share of fresh noise.
        clip: clamp x0 to [-1, 1] at every step (ddpm and ddim).

    Raises:
        UserError: unknown name.
    """
    if name == "ddpm":
        return Ancestral(clip)
    if name == "ddim":
        return DDIM(eta, clip)
    if name.startswith("edm-") and name in SAMPLERS:
        return Karras(heun=name == "edm-heun")
    if name not in SAMPLERS:
        raise UserError(f"no sampler {name!r}{nearest(name, SAMPLERS)}")
    from udit.diffusion.solvers import Solver

    return Solver(name)


def _walk(denoise: Denoise, x: Tensor, steps: int | str) -> Iterator[tuple[int, int, Denoise, DDPM, Tensor]]:
    denoise = denoise.respaced(steps)
    schedule = denoise.schedule
    assert isinstance(schedule, DDPM)
    for k, i in enumerate(reversed(range(len(schedule))), start=1):
        yield k, i, denoise, schedule, torch.full((len(x),), i, device=x.device)


def _x0(prediction: Prediction, clip: bool) -> Tensor:
    return prediction.x0.clamp(-1, 1) if clip else prediction.x0


@dataclass(frozen=True)
class Ancestral:
    """DDPM's ancestral step with a learned-range or, without one, the large fixed variance (Ho et al. 2020; ADM)."""

    clip: bool = False

    def __call__(self, denoise: Denoise, x: Tensor, steps: int | str, y: Tensor | None, noise: Noise) -> Iterator[Step]:
        """Yields after every step; noise is not drawn at the last one."""
        for k, i, respaced, schedule, t in _walk(denoise, x, steps):
            prediction = respaced(x, t, y)
            x0 = _x0(prediction, self.clip)
            if prediction.variance is not None:
                mean, log_variance = ancestral_moments(schedule, x0, prediction.variance.to(x0.dtype), x, t)
            else:
                large = np.append(schedule.posterior_variance[1:2], schedule.betas[1:])
                mean, _ = ancestral_moments(schedule, x0, torch.zeros_like(x), x, t)
                log_variance = gather(np.log(large), t, x)
            x = mean + (0.5 * log_variance).exp() * noise(k) if i else mean
            yield Step(k, len(schedule), x, x0)


@dataclass(frozen=True)
class DDIM:
    """The implicit step (Song et al. 2021), with a share ``eta`` of fresh noise."""

    eta: float = 0.0
    clip: bool = False

    def __call__(self, denoise: Denoise, x: Tensor, steps: int | str, y: Tensor | None, noise: Noise) -> Iterator[Step]:
        """Yields after every step; noise is drawn for eta > 0 only, and not at the last step."""
        for k, i, respaced, schedule, t in _walk(denoise, x, steps):
            x0 = _x0(respaced(x, t, y), self.clip)
            bar, bar_prev = schedule.alpha_bar, schedule.alpha_bar_prev
            eps = (x - gather(np.sqrt(bar), t, x) * x0) / gather(np.sqrt(1 - bar), t, x)
            spread = self.eta * np.sqrt((1 - bar_prev) / (1 - bar)) * np.sqrt(1 - bar / bar_prev)
            x = gather(np.sqrt(bar_prev), t, x) * x0 + gather(np.sqrt(1 - bar_prev - spread**2), t, x) * eps
            if i and self.eta:
                x = x + gather(spread, t, x) * noise(k)
            yield Step(k, len(schedule), x, x0)


@dataclass(frozen=True)
class Karras:
    """EDM's deterministic sampler (Karras et al. 2022, Alg. 1): Heun's steps, or Euler's, down its ladder."""

    heun: bool = True

    def __call__(self, denoise: Denoise, x: Tensor, steps: int | str, y: Tensor | None, noise: Noise) -> Iterator[Step]:
        """Yields after every network evaluation; draws no noise. Heun's steps take two, the last one: an odd number.

        Raises:
            UserError: the model knows no noise levels, or steps that are not a count.
        """
        schedule, name = denoise.schedule, "edm-heun" if self.heun else "edm-euler"
        if not isinstance(schedule, EDM):
            kind, others = ("DDPM", "ddim") if isinstance(schedule, DDPM) else ("flow matching", "flow-euler")
            raise UserError(
                f"{name} walks EDM's noise levels and the model was trained with {kind}; use {others}, dpmpp or unipc"
            )
        if not str(steps).isdecimal() or int(steps) < 1:
            raise UserError(f"steps is {steps!r}; the {name} sampler takes a count of at least 1")
        rungs = (int(steps) + 1) // 2 if self.heun else int(steps)
        levels = schedule.ladder(rungs)
        total = 2 * rungs - 1 if self.heun else rungs
        x, k = x.to(torch.promote_types(x.dtype, torch.float32)) * levels[0], 0
        for level, lower in pairwise(levels):
            here = denoise(x, x.new_full((len(x),), level), y)
            start, x, k = x, x + (lower - level) * here.eps, k + 1
            yield Step(k, total, x, here.x0)
            if self.heun and lower:
                there = denoise(x, x.new_full((len(x),), lower), y)
                x, k = start + (lower - level) * (here.eps + there.eps) / 2, k + 1
                yield Step(k, total, x, there.x0)
