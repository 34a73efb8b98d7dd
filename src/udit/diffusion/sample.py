"""The way from noise to data: one loop that yields every step, whatever the sampler.

Samplers are rows of ``samplers.SAMPLERS``: DDPM's two are in ``ddpm``, EDM's two in ``edm``, diffusers' in ``solvers``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from udit import rng
from udit.diffusion.cache import StepCache
from udit.diffusion.guidance import AnyDenoiser, Guided
from udit.diffusion.origin import Origin
from udit.diffusion.samplers import SAMPLERS
from udit.errors import UserError, nearest
from udit.ops.transfer import sent

Noise = Callable[[int], Tensor]
"""k -> [B, C, H, W] standard normal for the k-th step taken; k = 1 is the first and noisiest."""


@dataclass(frozen=True)
class Step:
    """The state after one step."""

    index: int
    """1 for the first step."""
    total: int
    x: Tensor
    """[B, C, H, W]; after the last step, the samples."""
    x0: Tensor
    """[B, C, H, W] the model's prediction of the samples at this step: a preview."""


class Sampler(Protocol):
    """Goes from noise to data."""

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every step; with an origin, of the times up to its strength alone."""

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """[n] the time that the innermost network gets at each evaluation, in its own unit and in order.

        Of images that are noised to ``strength``, only those of the steps that remain.
        """


class SeededNoise:
    """Noise from each image's own seed: image i is the same image in any batch, on any rank.

    A seed may be a point between two (``Between``): every step's noise then is.
    """

    def __init__(self, seeds: Sequence[rng.Seed], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.seeds = list(seeds)
        self.shape = tuple(shape)
        self.device = device

    def __call__(self, k: int) -> Tensor:
        """k = 0 is x_T, k >= 1 the k-th step's noise; [B, C, H, W] for (C, H, W) as given."""
        drawn = torch.stack([rng.normal_at(self.shape, seed, "sample", k) for seed in self.seeds])
        return sent(drawn, self.device)  # the host goes on to draw the next while a GPU computes


def sample(
    denoiser: AnyDenoiser,
    x_T: Tensor,
    *,
    sampler: str | Sampler = "ddim",
    steps: int | str = 50,
    y: Tensor | None = None,
    noise: Noise | None = None,
    cache: StepCache | None = None,
    origin: Origin | None = None,
    scheduler: str | Sampler | None = None,
) -> Iterator[Step]:
    """Draws samples; iterate to the end and take the last step's ``x``.

    Args:
        denoiser: a ``Denoiser`` or ``Guided``.
        x_T: [B, C, H, W] standard normal.
        sampler: a name of ``SAMPLERS``, or a sampler.
        steps: network evaluations; ddpm and ddim also take ADM's respacing strings, e.g. ``"ddim50"``.
        y: [B] int64 labels or None.
        noise: fresh noise by step, for samplers that use it; without one, they refuse.
        cache: reuses the output of the network's deep part over some steps; see ``StepCache``.
        origin: images to start from, in place of pure noise; ``x_T`` is then the noise that is added to them.
        scheduler: the former name of ``sampler``.

    Raises:
        UserError: unknown sampler, one that does not fit the schedule, labels out of range, or a cache for a network
            that does not come in parts, or an origin of a strength at which no step is left.
    """
    if scheduler is not None:
        warnings.warn("scheduler= is now sampler=; use udit.sample(..., sampler=...)", DeprecationWarning, stacklevel=2)
        sampler = scheduler
    return _steps(denoiser, x_T, sampler, steps, y, noise or _no_noise, cache, origin)


@torch.no_grad()  # around each step: the caller's code between two has gradients, and any thread may ask for the next
def _steps(
    denoiser: AnyDenoiser,
    x_T: Tensor,
    sampler: str | Sampler,
    steps: int | str,
    y: Tensor | None,
    noise: Noise,
    cache: StepCache | None,
    origin: Origin | None,
) -> Iterator[Step]:
    denoiser.check_labels(y, len(x_T))
    sampler = make_sampler(sampler) if isinstance(sampler, str) else sampler
    left_out = 0
    if origin is not None:
        whole, rest = sampler.times(denoiser, steps), sampler.times(denoiser, steps, origin.strength)
        left_out = len(whole) - len(rest)
    unasked = left_out  # evaluations of the network itself
    if isinstance(denoiser, Guided):
        denoiser, unasked = denoiser.begun(left_out), max(0, left_out - denoiser.zero_init)
    denoiser = cache.wrap(denoiser, unasked) if cache else denoiser
    start = {} if origin is None else {"origin": origin}
    yield from sampler(denoiser, x_T, steps, y, noise, **start)


def _no_noise(k: int) -> Tensor:
    raise UserError(f"step {k} draws fresh noise; pass noise=SeededNoise(seeds, shape) to sample()")


def make_sampler(name: str, *, eta: float = 0.0, clip: bool = False) -> Sampler:
    """The sampler of a name.

    Args:
        name: of ``SAMPLERS``.
        eta: DDIM's fraction of fresh noise.
        clip: clamp x0 to [-1, 1] at every step (ddpm and ddim).

    Raises:
        UserError: unknown name.
    """
    if name not in SAMPLERS:
        raise UserError(f"no sampler {name!r}{nearest(name, SAMPLERS)}")
    return SAMPLERS[name].build(eta, clip)
