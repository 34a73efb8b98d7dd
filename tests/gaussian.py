"""Data with a known distribution: pixels drawn from N(mean, std**2), whose best denoiser has a closed form.

With x_t = a x0 + s eps, x_t has variance V = a**2 std**2 + s**2, and the mean of eps given x_t is s (x_t - a mean) / V.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.denoiser import Denoiser
from udit.diffusion.schedule import Schedule
from udit.diffusion.targets import Target, encode


@dataclass(frozen=True)
class Gaussian:
    """Independent pixels of N(mean, std**2)."""

    mean: float = 0.3
    std: float = 0.5

    def draw(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return self.mean + self.std * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def denoiser(self, schedule: Schedule, target: Target = "eps", variance: float | None = None) -> Denoiser:
        """The optimal denoiser; with ``variance`` it predicts that learned-range fraction everywhere."""
        full = schedule

        def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            alpha, sigma = full.alpha_sigma(t, x)
            spread = alpha**2 * self.std**2 + sigma**2
            eps = sigma * (x - alpha * self.mean) / spread
            x0 = self.mean + alpha * self.std**2 * (x - alpha * self.mean) / spread
            out = encode(target, x0, eps, alpha, sigma)
            return out if variance is None else torch.cat([out, torch.full_like(out, variance)], dim=1)

        return Denoiser(backbone, schedule, target, learn_sigma=variance is not None, time=schedule.time)

    def flow_map(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Where the probability-flow ODE takes x from (alpha, sigma) to the data, with the same standardised value."""
        return self.mean + self.std * (x - alpha * self.mean) / np.sqrt(alpha**2 * self.std**2 + sigma**2)
