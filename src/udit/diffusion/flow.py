"""Flow matching: a continuous path from data to noise, whose velocity is learned (Lipman et al. 2023).

The library has one convention: t = 0 is data and t = 1 noise. On the linear path

    x_t = (1 - t) x0 + t eps,        dx_t/dt = eps - x0

and on the path of cosine and sine (GVP, Albergo & Vanden-Eijnden 2023; Ma et al. 2024, SiT)

    x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps,        dx_t/dt = pi / 2 (cos(pi t / 2) eps - sin(pi t / 2) x0).

Importers and solvers with another convention convert. The samplers are in ``transport``, diffusers' in ``solvers``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from udit.diffusion.config import FlowConfig, ProcessConfig
from udit.diffusion.denoiser import Denoiser, mix
from udit.diffusion.learning import Learning, shifted, unshifted
from udit.diffusion.objective import Losses
from udit.diffusion.schedule import INDEX_SCALE, Schedule, TimeUnit
from udit.diffusion.targets import Target, encode


@dataclass(frozen=True)
class Flow(Schedule):
    """A path from data to noise; times are floats in [0, 1].

    Attributes:
        path: ``linear`` or ``gvp``, which preserves the variance.
        predict: what networks are trained to predict; the velocity is the path's.
        learning: which times training draws, and how it weighs their errors.
        shift: moves the times of training and sampling towards noise, see ``shifted``.
    """

    process: ClassVar[type[ProcessConfig]] = FlowConfig
    time: ClassVar[TimeUnit] = "unit"

    path: Literal["linear", "gvp"] = "linear"
    predict: Literal["velocity", "x0", "v"] = "velocity"
    learning: Learning = field(default_factory=Learning)
    shift: float = 1.0

    @property
    def target(self) -> Target:
        """The velocity of the path, or what ``predict`` says."""
        return self.velocity if self.predict == "velocity" else self.predict

    @property
    def velocity(self) -> Target:
        """dx_t/dt as a target."""
        return "flow" if self.path == "linear" else "gvp"

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at t [B], shaped [B, 1, 1, 1]."""
        t = t.to(torch.promote_types(like.dtype, torch.float32)).view(-1, *[1] * (like.ndim - 1))
        return (1 - t, t) if self.path == "linear" else ((t * (math.pi / 2)).cos(), (t * (math.pi / 2)).sin())

    def from_linear(self, sigma: float) -> tuple[float, float]:
        """The time at which this path has the linear one's ratio of noise to signal, and x_t here over x_t there."""
        if self.path == "linear":
            return sigma, 1.0
        return math.atan2(sigma, 1 - sigma) / (math.pi / 2), 1 / math.hypot(sigma, 1 - sigma)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training time in [0, 1]."""
        return shifted(self.learning.draw(generator), self.shift)

    def density(self, t: Tensor) -> Tensor:
        """Probability density of ``draw``, before a weighting takes its place, at t in (0, 1)."""
        u = unshifted(t, self.shift)
        slope = self.shift / (self.shift - (self.shift - 1) * t).square()  # du/dt
        return self.learning.density.pdf(u) * slope

    def fraction(self, t: Tensor) -> Tensor:
        """t itself."""
        return t.double()

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """t; 1000 t as an index; or the ratio of noise to signal."""
        if unit != "sigma":
            return t if unit == "unit" else t * INDEX_SCALE
        alpha, sigma = self.alpha_sigma(t, t)
        return sigma / alpha.clamp_min(1e-6)

    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """``flow_loss``."""
        return flow_loss(denoiser, x0, t, noise, y)


def flow_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
    """Squared error of the network's target: for flow matching, of the velocity (Lipman et al. 2023, Eq. 14).

    Args:
        denoiser: a flow, v, x0 or eps denoiser without learned variance.
        x0: [B, C, H, W] data.
        t: [B] times of its schedule.
        noise: [B, C, H, W].
        y: [B] labels, some dropped, or None.
    """
    schedule = denoiser.schedule
    prediction, _ = denoiser.raw(mix(schedule, x0, noise, t), t, y)
    alpha, sigma = schedule.alpha_sigma(t, x0)
    goal = encode(denoiser.target, x0, noise, alpha, sigma)
    learning = schedule.learning if isinstance(schedule, Flow) else Learning()
    density = schedule.density(t) if isinstance(schedule, Flow) and learning.weighting == "density" else t
    return Losses(*learning.losses(denoiser.target, prediction.float(), goal, alpha, sigma, density))
