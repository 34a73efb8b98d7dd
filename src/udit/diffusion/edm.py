"""EDM: noise by its level sigma, preconditioned networks, weighted losses, and two samplers (Karras et al. 2022).

x = x0 + sigma n: alpha is 1 and the process's own time is sigma. A network F of inputs and outputs of unit variance
becomes a denoiser at every noise level (Eq. 7), with sigma_data the standard deviation of the data:

    D(x, sigma) = c_skip x + c_out F(c_in x, sigma)                     the guess of x0
    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2)                    (Table 1)
    c_out  = sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
    c_in   = 1 / sqrt(sigma^2 + sigma_data^2)

HDiT was published in this form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.config import EDMConfig, check_sampler
from udit.diffusion.denoiser import Backbone, Denoiser, mix
from udit.diffusion.guidance import AnyDenoiser
from udit.diffusion.objective import Losses
from udit.diffusion.origin import Origin, skipped
from udit.diffusion.sample import Noise, Step
from udit.diffusion.schedule import INDEX_SCALE, Schedule, Table, TimeUnit, alike, everywhere
from udit.diffusion.targets import Target

Path = Literal["exploding", "preserving", "linear"]
"""Signal scale alpha where sigma / alpha = s: 1; 1 / sqrt(1 + s**2) as in ``DDPM``; 1 / (1 + s) as in ``Flow``."""
Weighting = Literal["edm", "soft-min-snr"]


@dataclass(frozen=True)
class EDM(Schedule):
    """Noise levels of training and of sampling (Karras et al. 2022, Table 1).

    Attributes:
        sigma_min: lowest level of sampling before sigma = 0.
        sigma_max: level at which sampling starts.
        rho: sampling's levels are evenly spaced in sigma ** (1 / rho).
        log_mean: mean of ln sigma in training, where that is normal.
        log_std: its standard deviation.
        resolutions: where training draws sigma by an interpolated cosine, two resolutions as fractions of the image's
            side; the cosine schedule of the first dominates near noise, that of the second near data.
        sigma_data: standard deviation of the data.
        weighting: of the loss, see ``WeightedLoss``.
    """

    process: ClassVar = EDMConfig
    time: ClassVar[TimeUnit] = "sigma"

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    log_mean: float = -1.2
    log_std: float = 1.2
    resolutions: tuple[float, float] | None = None
    sigma_data: float = 0.5
    weighting: Weighting = "soft-min-snr"

    @property
    def target(self) -> Target:
        """x0: what the preconditioned network returns."""
        return "x0"

    def precondition(self, backbone: Backbone, unit: TimeUnit) -> tuple[Backbone, TimeUnit]:
        """The network in ``Preconditioned``, which gets sigma."""
        return Preconditioned(backbone, self.sigma_data, time=unit), "sigma"

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """1 and t, shaped [B, 1, 1, 1]."""
        sigma = t.to(torch.promote_types(like.dtype, torch.float32)).view(-1, *[1] * (like.ndim - 1))
        return torch.ones_like(sigma), sigma

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training level: log-normal, or by the interpolated cosine at a uniform time."""
        if self.resolutions is None:
            return (self.log_mean + self.log_std * torch.randn((), generator=generator)).exp()
        return self.interpolated_cosine(torch.rand((), generator=generator))

    def interpolated_cosine(self, t: Tensor) -> Tensor:
        """Levels from ``sigma_min`` at t = 0 to ``sigma_max`` at t = 1 (Hoogeboom et al. 2023, Sec. 3.1).

        A cosine schedule is sigma / sigma_data = tan(angle), with angles evenly spaced in time. Shifted for a
        resolution r times the image's side, its tangents are divided by r; two such schedules are interpolated in
        ln sigma.
        """
        assert self.resolutions is not None

        def shifted(r: float) -> Tensor:
            low, high = (math.atan(r * level / self.sigma_data) for level in (self.sigma_min, self.sigma_max))
            return torch.tan(low + t.double() * (high - low)) * self.sigma_data / r

        noisy, clean = (shifted(r).log() for r in self.resolutions)
        return (t * noisy + (1 - t) * clean).exp().float()

    def fraction(self, t: Tensor) -> Tensor:
        """The place of t among sampling's levels: linear in sigma ** (1 / rho), clamped to 0 ... 1."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((t.double() ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """t; or the time at which the linear flow path has the same ratio of noise to signal, t / (1 + t)."""
        return sigma_as(t, unit)

    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """``WeightedLoss``."""
        return WeightedLoss(self.sigma_data, self.weighting)(denoiser, x0, t, noise, y)

    def ladder(self, steps: int) -> Table:
        """[steps + 1] levels from ``sigma_max`` to ``sigma_min``, then 0 (Karras et al. 2022, Eq. 5)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        rungs = high + np.linspace(0, 1, steps, dtype=np.float64) * (low - high)
        return np.append(rungs**self.rho, 0.0)


def sigma_as(sigma: Tensor, unit: TimeUnit) -> Tensor:
    """A ratio of noise to signal [B] in a network's unit; ``unit`` and ``index`` as on the linear flow path."""
    flow = sigma / (1 + sigma)
    return {"sigma": sigma, "unit": flow, "index": flow * INDEX_SCALE}[unit]


@dataclass(frozen=True)
class Preconditioned:
    """A network F as a backbone whose target is x0 and whose time is sigma, the ratio of noise to signal.

    ``Denoiser(Preconditioned(network, path="preserving"), DDPM.linear(), target="x0", time="sigma")`` samples with any
    sampler of that schedule.

    Attributes:
        backbone: F.
        sigma_data: standard deviation of the data.
        path: how the noised input was scaled.
        time: F's unit of time; this one's is sigma.
    """

    backbone: Backbone
    sigma_data: float = 0.5
    path: Path = "exploding"
    time: TimeUnit = "sigma"

    def __call__(self, x: Tensor, sigma: Tensor, y: Tensor | None = None, /) -> Tensor:
        """x [B, C, H, W] = alpha (x0 + sigma n), sigma [B], y as the network takes it -> x0 [B, C, H, W]."""
        ratio = sigma.to(torch.promote_types(x.dtype, torch.float32)).view(-1, *[1] * (x.ndim - 1))
        if self.path != "exploding":
            x = x * ((1 + ratio**2).sqrt() if self.path == "preserving" else 1 + ratio)
        variance = ratio**2 + self.sigma_data**2
        output = self.backbone((x * variance.rsqrt()).to(x.dtype), alike(sigma, self.inner_time), y)
        return self.sigma_data**2 / variance * x + ratio * self.sigma_data * variance.rsqrt() * output

    def inner_time(self, sigma: Tensor) -> Tensor:
        """sigma [B] in F's unit."""
        return sigma_as(sigma, self.time)

    def rewrapped(self, change: Callable[[Backbone], Backbone]) -> Preconditioned:
        """The same around ``change(F)``."""
        return replace(self, backbone=change(self.backbone))


@dataclass(frozen=True)
class WeightedLoss:
    """Squared error of x0, weighted by the noise level; called like ``flow_loss``.

    Attributes:
        sigma_data: of the preconditioning.
        weighting: ``edm`` is 1 / c_out**2, under which every level has the same weight at initialisation (Karras et al.
            2022, Table 1); ``soft-min-snr`` is 1 / (sigma**2 + sigma_data**2) (Crowson et al. 2024, Eq. 5).
    """

    sigma_data: float = 0.5
    weighting: Weighting = "soft-min-snr"

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """x0 and noise [B, C, H, W], t [B] noise levels, y [B] labels, some dropped, or None -> losses [B]."""
        prediction, _ = denoiser.raw(mix(denoiser.schedule, x0, noise, t), t, y)
        mse = (prediction.float() - x0).square().mean(dim=(1, 2, 3))
        weight = 1 / (t**2 + self.sigma_data**2)
        if self.weighting == "edm":
            weight = 1 / (weight * (t * self.sigma_data) ** 2)
        return Losses(weight * mse, mse)


@dataclass(frozen=True)
class Karras:
    """EDM's deterministic sampler (Karras et al. 2022, Alg. 1) over its noise levels: Heun's steps, or Euler's."""

    heun: bool = True

    @property
    def name(self) -> str:
        """In ``SAMPLERS``."""
        return "edm-heun" if self.heun else "edm-euler"

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """As ``Sampler.times``; Heun's steps ask at both of their levels, the last one at its first alone."""
        levels = self._levels(denoiser, steps, strength)
        asked = np.append(levels[0], levels[1:-1].repeat(2)) if self.heun else levels[:-1]
        return denoiser.network_time(torch.from_numpy(asked).float())

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every network evaluation; draws no noise.

        Heun's steps take two evaluations each and the last takes one, so their number is odd: an even ``steps`` is
        lowered by one.

        Raises:
            UserError: the model was trained on another process, or steps are not a count.
        """
        levels = self._levels(denoiser, steps, origin.strength if origin else 1.0)
        rungs = len(levels) - 1
        total = 2 * rungs - 1 if self.heun else rungs
        if origin is None:
            x = x.to(torch.promote_types(x.dtype, torch.float32)) * levels[0]
        else:
            x = origin.noised(denoiser.schedule, torch.tensor(levels[0]), x)
        k = 0
        for level, lower in pairwise(levels):
            here = denoiser(x, everywhere(level, x, x.dtype), y)
            start, x, k = x, x + (lower - level) * here.eps, k + 1
            yield Step(k, total, x, here.x0)
            if self.heun and lower:
                there = denoiser(x, everywhere(lower, x, x.dtype), y)
                x, k = start + (lower - level) * (here.eps + there.eps) / 2, k + 1
                yield Step(k, total, x, there.x0)

    def _levels(self, denoiser: AnyDenoiser, steps: int | str, strength: float) -> Table:
        check_sampler(self.name, denoiser.schedule.process, steps)
        assert isinstance(denoiser.schedule, EDM)
        levels = denoiser.schedule.ladder((int(steps) + 1) // 2 if self.heun else int(steps))
        if strength == 1:
            return levels
        return levels[skipped(denoiser.schedule, torch.from_numpy(levels[:-1]), strength) :]
