"""Consistency tuning: a trained flow learns to guess the data in one evaluation (Geng et al. 2024, arXiv 2406.14548).

A consistency function f(x_t, t) is the data at the end of the path through x_t (Song et al. 2023). Here it is the guess
of x0 that a network of the flow makes anyhow: of a velocity, f(x, 0) = x holds by itself. Two points of one sample's
path, at t and at r below it, are to have the same image; that of the lower one is the goal, without gradients:

    loss = (sqrt(||f(x_t, t) - f(x_r, r)||^2 + c^2) - c) / (t - r),        r = t (1 - 2^-stage)

The trained flow is the case r = 0, so that tuning begins near it; with every stage r comes twice as close to t.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from udit.diffusion.config import check_sampler
from udit.diffusion.denoiser import Denoiser, mix
from udit.diffusion.few_step_config import ConsistencyConfig
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import AnyDenoiser
from udit.diffusion.objective import Losses
from udit.diffusion.origin import Origin, begun, remaining
from udit.diffusion.process_config import ProcessConfig
from udit.diffusion.sample import Noise, Step
from udit.diffusion.schedule import everywhere

EARLIEST = 1e-3
"""Lowest training time."""
SOFTNESS = 0.00054
"""c over the square root of the numbers in a sample (Song & Dhariwal 2024)."""


@dataclass(frozen=True)
class Consistency(Flow):
    """A path whose points are to lead to one image; times are floats in [0, 1].

    Attributes:
        stages: how often the two points of a pair come closer.
        stage_steps: training steps of each stage but the last.
        stage: the present one, from 1; ``at_step`` counts it.
    """

    process: ClassVar[type[ProcessConfig]] = ConsistencyConfig

    stages: int = 8
    stage_steps: int = 100
    stage: int = 8

    def at_step(self, step: int) -> Self:
        """The same in the stage of a training step, counted from 0."""
        return dataclasses.replace(self, stage=min(self.stages, 1 + step // self.stage_steps))

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training time above 0."""
        return super().draw(generator).clamp(min=EARLIEST)

    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """``consistency_loss``."""
        return consistency_loss(denoiser, x0, t, noise, y)


def consistency_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
    """Distance between the images to which two points of a sample's path lead, over their distance in time.

    Args:
        denoiser: on a ``Consistency``.
        x0: [B, C, H, W] data.
        t: [B] times of the upper points.
        noise: [B, C, H, W].
        y: [B] labels, some dropped, or None.
    """
    schedule = denoiser.schedule
    assert isinstance(schedule, Consistency)
    gap = t * 2.0**-schedule.stage
    with torch.no_grad():
        goal = denoiser(mix(schedule, x0, noise, t - gap), t - gap, y).x0
    squared = (denoiser(mix(schedule, x0, noise, t), t, y).x0 - goal).square().flatten(1)
    soft = SOFTNESS * math.sqrt(squared.shape[1])
    return Losses(((squared.sum(dim=1) + soft**2).sqrt() - soft) / gap, squared.mean(dim=1))


@dataclass(frozen=True)
class ConsistencySteps:
    """Guesses the data from pure noise; every further evaluation noises the guess anew and guesses again.

    Multistep consistency sampling (Song et al. 2023, Alg. 1), at equally spaced times.
    """

    name: ClassVar[str] = "flow-consistency"

    def _grid(self, denoiser: AnyDenoiser, steps: int | str) -> Tensor:
        check_sampler(self.name, denoiser.schedule.process, steps)
        return torch.linspace(1, 0, int(steps) + 1, dtype=torch.float64)[:-1]

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """As ``Sampler.times``."""
        grid = remaining(denoiser.schedule, self._grid(denoiser, steps), strength, ends=False)
        return denoiser.network_time(grid.float())

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every evaluation; every one but the first draws fresh noise.

        Raises:
            UserError: the model was not tuned for consistency, or steps are not a count.
        """
        grid, x = begun(denoiser.schedule, self._grid(denoiser, steps), x.float(), origin, ends=False)
        for k, time in enumerate(grid, start=1):
            t = everywhere(float(time), x)
            if k > 1:
                x = mix(denoiser.schedule, x, noise(k - 1).to(x), t)
            x = denoiser(x, t, y).x0
            yield Step(k, len(grid), x, x)
