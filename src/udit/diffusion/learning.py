"""What a training emphasises: at which times it looks, and how it weighs the error there.

Times u in [0, 1] run from data to noise. A process maps them to its own unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from udit.diffusion.config import LearnedProcess
from udit.diffusion.targets import Target, x0_per

DensityName = Literal["uniform", "logit-normal", "mode", "cosmap"]
Weighting = Literal["none", "min-snr", "soft-min-snr", "density"]
LARGEST_RATIO = 20.0
"""Most by which an error is scaled from one target to another: JiT's velocity of a predicted x0 divides by t, and by
0.05 where t is less (Li & He 2025, arXiv 2511.13720)."""


@dataclass(frozen=True)
class Density:
    """How training times are distributed over [0, 1] (Esser et al. 2024, arXiv 2403.03206, Sec. 3.1).

    Attributes:
        name: ``uniform``; ``logit-normal``: ln(u / (1 - u)) is normal; ``mode``: heavy in the middle, above 0 at both
            ends; ``cosmap``: so that the ratio of noise to signal is the cosine schedule's.
        mean: of the logit-normal's normal; above 0 favours noise.
        std: its standard deviation.
        scale: of ``mode``, -1 to 2 / (pi - 2): above 0 favours the middle, below 0 both ends.
    """

    name: DensityName = "uniform"
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29

    def draw(self, generator: torch.Generator) -> Tensor:
        """One time as a scalar, from one random number."""
        if self.name == "logit-normal":
            return torch.sigmoid(self.mean + self.std * torch.randn((), generator=generator))
        u = torch.rand((), generator=generator)
        return u if self.name == "uniform" else self.mapped(u)

    def mapped(self, u: Tensor) -> Tensor:
        """Times of ``mode`` and ``cosmap`` at uniform numbers."""
        if self.name == "cosmap":
            return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
        return 1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)

    def pdf(self, t: Tensor) -> Tensor:
        """Probability density at times t in (0, 1), in t's dtype; that of a time near an end at the ends."""
        if self.name == "uniform":
            return torch.ones_like(t)
        t = t.clamp(1e-6, 1 - 1e-6)
        if self.name == "logit-normal":
            z = (torch.logit(t) - self.mean) / self.std
            return torch.exp(-z.square() / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))
        if self.name == "cosmap":
            return 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t.square())
        u = self._unmapped(t)
        slope = 1 + self.scale * (1 - math.pi / 2 * torch.sin(math.pi * u))  # of 1 - mapped(u)
        return 1 / slope.clamp_min(1e-6)

    def _unmapped(self, t: Tensor) -> Tensor:
        """The uniform number at which ``mode`` is t: it falls from 1 to 0, so halving finds it."""
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.mapped(middle) > t
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2


def shifted(t: Tensor, shift: float) -> Tensor:
    """s t / (1 + (s - 1) t): moves times towards noise by s > 1, as larger images need (Esser et al. 2024, Eq. 23)."""
    return t if shift == 1 else (shift * t / (1 + (shift - 1) * t)).clamp(max=1)


def unshifted(t: Tensor, shift: float) -> Tensor:
    """The inverse of ``shifted``."""
    return t if shift == 1 else t / (shift - (shift - 1) * t)


@dataclass(frozen=True)
class Learning:
    """Where a training looks, and how it weighs what it sees.

    Attributes:
        density: of the training times.
        weighting: of the squared error. ``min-snr`` and ``soft-min-snr`` are given as weights of the error of x0,
            min(SNR, gamma) (Hang et al. 2023) and SNR gamma / (SNR + gamma) (Crowson et al. 2024), and converted to the
            network's target; ``density`` draws times uniformly and weighs by the density in its place.
        gamma: of both.
        error: the target whose error is squared, e.g. the velocity of a network that predicts x0; None is the network's
            own.
        cosine: weight of 1 - cos between prediction and target, along channels, averaged over positions (Yao et al.
            2025, LightningDiT).
    """

    density: Density = Density()
    weighting: Weighting = "none"
    gamma: float = 5.0
    error: Target | None = None
    cosine: float = 0.0

    @staticmethod
    def of(config: LearnedProcess, velocity: Target) -> Learning:
        """What a process's config says; ``velocity`` is the target of that name."""
        density = Density(config.density, config.density_mean, config.density_std, config.density_scale)
        words: dict[str, Target | None] = {"own": None, "velocity": velocity, "v": "v", "x0": "x0", "eps": "eps"}
        return Learning(density, config.weighting, config.gamma, words[config.error], config.cosine)

    @property
    def weighs(self) -> bool:
        """Whether errors are weighted by their times at all."""
        return self.weighting != "none" or self.error is not None

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training time in [0, 1], a scalar."""
        return torch.rand((), generator=generator) if self.weighting == "density" else self.density.draw(generator)

    def weight(self, target: Target, alpha: Tensor, sigma: Tensor, density: Tensor) -> Tensor | None:
        """Weight of the squared error of a network's own target; None where all weights are 1.

        Args:
            target: what the network predicts.
            alpha: scale of the signal, of any shape.
            sigma: scale of the noise, as alpha.
            density: probability density of the times, as alpha.
        """
        if self.weighting in ("min-snr", "soft-min-snr"):
            signal, noise = alpha.square(), sigma.square()
            if self.weighting == "min-snr":
                of_x0 = torch.minimum(signal / noise, torch.full_like(noise, self.gamma))
            else:
                of_x0 = self.gamma * signal / (signal + self.gamma * noise)
            return of_x0 * x0_per(target, alpha, sigma).square()
        weight = None
        if self.error is not None and self.error != target:
            ratio = x0_per(target, alpha, sigma) / x0_per(self.error, alpha, sigma)
            weight = ratio.clamp(max=LARGEST_RATIO).square()
        if self.weighting == "density":
            weight = density if weight is None else density * weight
        return weight

    def losses(
        self, target: Target, prediction: Tensor, goal: Tensor, alpha: Tensor, sigma: Tensor, density: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss and mean squared error of each sample, [B] each.

        Args:
            target: what the network predicts.
            prediction: [B, C, ...] its output, float32 at least.
            goal: [B, C, ...] what it should be.
            alpha: scale of the signal, [B, 1, ...]; unused, as the next two, where nothing is weighted.
            sigma: scale of the noise, as alpha.
            density: probability density of the times, as alpha.
        """
        axes = tuple(range(1, goal.ndim))
        mse = (prediction - goal).square().mean(dim=axes)
        weight = self.weight(target, alpha, sigma, density) if self.weighs else None
        loss = mse if weight is None else weight.to(mse.dtype).flatten() * mse
        if self.cosine:
            alike = torch.nn.functional.cosine_similarity(prediction, goal, dim=1)
            loss = loss + self.cosine * (1 - alike).mean(dim=axes[:-1])
        return loss, mse
