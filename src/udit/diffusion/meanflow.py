"""MeanFlow: a flow's average velocity over an interval, with which one evaluation goes from noise to data.

Geng et al. 2025, arXiv 2505.13447. For r <= t the average of the velocity v along the path from t down to r is u, so
that x_r = x_t - (t - r) u(x_t, t, r), and u(x_t, t, t) is the velocity itself. Differentiated along the path, that is

    u = v - (t - r) du/dt,        du/dt = v du/dx_t + du/dt

with v = eps - x0 of the sample, whose right side is what the network learns, without gradients (Eqs. 6, 10, 11). Its
derivative is a forward one (``torch.func.jvp``), of the samples with r < t alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from udit.diffusion.config import check_sampler
from udit.diffusion.denoiser import Backbone, Denoiser, mix, null_labels
from udit.diffusion.few_step_config import MeanFlowConfig
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import AnyDenoiser
from udit.diffusion.objective import Losses
from udit.diffusion.origin import Origin, begun, remaining
from udit.diffusion.process_config import ProcessConfig
from udit.diffusion.sample import Noise, Step
from udit.diffusion.schedule import TimeUnit, told
from udit.ops import surroundings
from udit.ops.transfer import sent

FLOOR = 1e-3
"""c of the adaptive weight 1 / (squared error + c) ** power (Sec. 4.3)."""


@dataclass(frozen=True)
class MeanFlow(Flow):
    """The linear path; times are [B], or [B, 2]: t and the second time r at which an average ends.

    Attributes:
        share: of the samples whose second time is below the first; the others learn the velocity itself.
        power: of the adaptive weight; 0 is the squared error.
        guidance: scale of the guidance that the average velocity learns (Sec. 4.2); 1 means no guidance.
        guidance_mix: kappa: share of the guidance that comes from the network's own conditional prediction.
    """

    process: ClassVar[type[ProcessConfig]] = MeanFlowConfig

    share: float = 0.25
    power: float = 1.0
    guidance: float = 1.0
    guidance_mix: float = 0.0

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at the first time, shaped [B, 1, 1, 1]."""
        return super().alpha_sigma(first(t), like)

    def draw(self, generator: torch.Generator) -> Tensor:
        """[2] t and r: of two times of the density the later and the earlier one, or twice the later one."""
        times = torch.stack([super(MeanFlow, self).draw(generator) for _ in range(2)])
        moves = torch.rand((), generator=generator) < self.share
        return torch.stack([times.max(), torch.where(moves, times.min(), times.max())])

    def fraction(self, t: Tensor) -> Tensor:
        """The first time."""
        return first(t).double()

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """Both times where there are two."""
        return super().network_time(first(t), unit) if unit == "sigma" else super().network_time(t, unit)

    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """``mean_flow_loss``."""
        return mean_flow_loss(denoiser, x0, t, noise, y)


def first(t: Tensor) -> Tensor:
    """The first of two times [B, 2], or [B] as it is."""
    return t[:, 0] if t.ndim == 2 else t


def mean_flow_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
    """Adaptively weighted squared error of the average velocity (Alg. 1).

    Args:
        denoiser: on a ``MeanFlow``, of a network of two times.
        x0: [B, C, H, W] data.
        t: [B, 2] times.
        noise: [B, C, H, W].
        y: [B] labels, some dropped, or None.
    """
    schedule = denoiser.schedule
    assert isinstance(schedule, MeanFlow)
    x_t = mix(schedule, x0, noise, t)
    velocity = guided_velocity(denoiser, x_t, t[:, 0], noise - x0, y)
    goal = average_velocity(denoiser, x_t, t, velocity, y)  # first, while no activations are kept
    squared = (denoiser.raw(x_t, t, y)[0].float() - goal).square().flatten(1)
    weight = (squared.detach().sum(dim=1) + FLOOR) ** -schedule.power
    return Losses(weight * squared.sum(dim=1), squared.mean(dim=1))


@torch.no_grad()
def guided_velocity(denoiser: Denoiser, x_t: Tensor, t: Tensor, velocity: Tensor, y: Tensor | None) -> Tensor:
    """The velocity that is averaged: the sample's own, guided away from that of no class (Eqs. 19 to 21).

    Args:
        denoiser: as of ``mean_flow_loss``.
        x_t: [B, C, H, W].
        t: [B].
        velocity: [B, C, H, W] eps - x0.
        y: [B] labels; those of samples whose label was dropped keep their own velocity.
    """
    schedule = denoiser.schedule
    assert isinstance(schedule, MeanFlow)
    if schedule.guidance == 1 or y is None or denoiser.null_label is None:
        return velocity
    null, mixed = null_labels(y, denoiser.null_label), schedule.guidance_mix
    scale = schedule.guidance * (1 - mixed)  # so that the guidance is the same for any share
    guided = scale * velocity + (1 - scale - mixed) * denoiser.raw(x_t, t, null)[0].float()
    if mixed:
        guided = guided + mixed * denoiser.raw(x_t, t, y)[0].float()
    dropped = (y == null).flatten(1).all(dim=1) if y.ndim > 1 else y == null
    return torch.where(dropped.view(-1, *[1] * (x_t.ndim - 1)), velocity, guided)


@torch.no_grad()
def average_velocity(denoiser: Denoiser, x_t: Tensor, t: Tensor, velocity: Tensor, y: Tensor | None) -> Tensor:
    """What the network should say: v - (t - r) du/dt, and v itself where r is t.

    Args:
        denoiser: as of ``mean_flow_loss``.
        x_t: [B, C, H, W].
        t: [B, 2].
        velocity: [B, C, H, W] v.
        y: [B] labels or None.
    """
    if surroundings.without_data(t):
        moving = torch.arange(len(t), device=t.device)  # memory is counted of the most there can be
    else:
        [moving] = torch.nonzero(t[:, 1] < t[:, 0], as_tuple=True)
    if not len(moving):
        return velocity
    at, along, labels = (x_t[moving], t[moving]), velocity[moving], None if y is None else y[moving]

    alone = denoiser.with_network(_unsynchronised)

    def average(x: Tensor, times: Tensor) -> Tensor:
        return alone.raw(x, times, labels)[0]

    ahead = torch.tensor([1.0, 0.0], device=t.device).expand_as(at[1])
    with warnings.catch_warnings():  # torch's own, of how it differentiates forwards
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")
        slope: Tensor = torch.func.jvp(average, at, (along, ahead))[1]
    gap = (at[1][:, 0] - at[1][:, 1]).view(-1, *[1] * (x_t.ndim - 1))
    return velocity.index_copy(0, moving, along - gap * slope.float())


def _unsynchronised(network: Backbone) -> Backbone:
    """The network behind what averages its gradients over ranks, which torch.func does not see through."""
    return network.module if isinstance(network, DistributedDataParallel) else network


@dataclass(frozen=True)
class AverageSteps:
    """Steps along the average velocity, equally long in time: one evaluation each, and one may be all (Alg. 2)."""

    name: ClassVar[str] = "flow-average"

    def _grid(self, denoiser: AnyDenoiser, steps: int | str) -> Tensor:
        check_sampler(self.name, denoiser.schedule.process, steps)
        return torch.linspace(1, 0, int(steps) + 1, dtype=torch.float64)

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """As ``Sampler.times``: [n, 2], where each evaluation starts and ends."""
        grid = remaining(denoiser.schedule, self._grid(denoiser, steps), strength).float()
        return denoiser.network_time(torch.stack([grid[:-1], grid[1:]], dim=1))

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every step; draws no noise.

        Raises:
            UserError: the model was not trained with MeanFlow, or steps are not a count.
        """
        grid, x = begun(denoiser.schedule, self._grid(denoiser, steps), x.float(), origin)
        total = len(grid) - 1
        for k, pair in enumerate(pairwise(grid), start=1):
            times = torch.stack(pair).float()
            t = told(sent(times, x.device).expand(len(x), 2), times[None])
            prediction = denoiser(x, t, y)
            x = x - float(pair[0] - pair[1]) * (prediction.eps - prediction.x0)
            yield Step(k, total, x, prediction.x0)
