"""diffusers' few-step solvers behind our sampler interface.

A fresh solver is built for every call, from an explicit config: no learned variance, no clipping, no thresholding. It
is handed eps (on a discrete process) or the velocity (on a flow path), whatever the network itself predicts. The flow
solvers step along a path's own time. The multistep ones know the linear path alone: where the network's is another they
step along the linear one, whose x_t differs by a factor at the same ratio of noise to signal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.config import check_sampler
from udit.diffusion.guidance import AnyDenoiser
from udit.diffusion.origin import Origin, skipped
from udit.diffusion.sample import Noise, Step
from udit.diffusion.samplers import SAMPLERS, SolverSpec
from udit.diffusion.schedule import Schedule, Table, everywhere
from udit.diffusion.targets import Target, encode
from udit.errors import UserError, nearest

LEAST_SIGNAL = 2.0**-24
"""Signal's share of the variance that solvers see at a last step without any; diffusers has the same."""


@dataclass(frozen=True)
class Solver:
    """One of diffusers' solvers: a name of ``SAMPLERS``, e.g. ``dpmpp`` (DPM-Solver++ 2M)."""

    name: str

    def __post_init__(self) -> None:
        """Refuses a sampler that is not one of diffusers' solvers.

        Raises:
            UserError: names those that are.
        """
        known = [row.name for row in SAMPLERS.values() if isinstance(row, SolverSpec)]
        if self.name not in known:
            raise UserError(f"{self.name!r} is none of diffusers' solvers{nearest(self.name, known)}")

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """As ``Sampler.times``."""
        places = self._places(denoiser.schedule, self._solver(denoiser.schedule, steps))
        times = torch.tensor([place for place, _ in places])
        first = 0 if strength == 1 else skipped(denoiser.schedule, times, strength)
        return denoiser.network_time(times[first:])

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

        Raises:
            UserError: the model was trained on a process that this solver does not serve, or steps are not a count.
        """
        schedule = denoiser.schedule
        solver = self._solver(schedule, steps)
        discrete = schedule.discrete_betas() is not None
        velocity: Target = (schedule.velocity if self._own_time else None) or "flow"
        places, first = self._places(schedule, solver), 0
        if origin is None:
            x = x.float() if discrete else x.float() * float(solver.sigmas[0])  # DPM-Solver++: just below pure noise
        else:
            times = torch.tensor([place for place, _ in places])
            first = skipped(schedule, times, origin.strength)
            x = origin.noised(schedule, times[first], x.float()) / places[first][1]
            solver.set_begin_index(first)
        total = len(places) - first
        for k, (place, scale) in enumerate(places[first:], start=1):
            t = everywhere(place, x, torch.int64 if discrete else torch.float32)
            prediction = denoiser(x * scale, t, y)
            output = prediction.eps
            if not discrete:
                output = encode(velocity, prediction.x0, prediction.eps, *schedule.alpha_sigma(t, x))
            x = solver.step(output, solver.timesteps[first + k - 1], x, return_dict=False)[0]
            yield Step(k, total, x, prediction.x0)

    @property
    def _own_time(self) -> bool:
        """Whether it steps along a path's own time."""
        return self.name.startswith("flow-")

    def _places(self, schedule: Schedule, solver: Any) -> list[tuple[float, float]]:
        """For each evaluation the time of the schedule, and x_t there over the solver's x."""
        if schedule.discrete_betas() is not None:
            return [(int(time), 1) for time in solver.timesteps]
        # not ``timesteps``: DPM-Solver++ and UniPC round them down to whole thousandths
        sigmas = [float(sigma) for sigma in solver.sigmas[: len(solver.timesteps)]]
        return [(sigma, 1.0) if self._own_time else schedule.from_linear(sigma) for sigma in sigmas]

    def _solver(self, schedule: Schedule, steps: int | str) -> Any:
        check_sampler(self.name, schedule.process, steps)
        betas = schedule.discrete_betas()
        if betas is not None and int(steps) > len(betas):
            raise UserError(f"steps is {steps}; the schedule has {len(betas)}, ask for at most so many")
        if betas is not None and betas[-1] == 1:  # solvers step along the logarithm
            betas = np.append(betas[:-1], 1 - LEAST_SIGNAL / np.prod(1 - betas[:-1]))
        return self._build(betas, int(steps), getattr(schedule, "shift", 1.0))

    def _build(self, betas: Table | None, steps: int, shift: float) -> Any:
        import diffusers

        solver: Any  # diffusers leaves its schedulers untyped
        if self.name == "flow-euler":
            solver = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
            solver.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
            return solver
        kind = diffusers.DPMSolverMultistepScheduler if self.name == "dpmpp" else diffusers.UniPCMultistepScheduler
        options: dict[str, Any] = {
            "solver_order": 2,
            "thresholding": False,
            "lower_order_final": True,
            "final_sigmas_type": "zero",
        }
        if self.name == "dpmpp":
            options |= {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "variance_type": None}
        if betas is None:
            options |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        else:
            options |= {"prediction_type": "epsilon", "trained_betas": betas, "timestep_spacing": "linspace"}
        solver = kind(num_train_timesteps=1000 if betas is None else len(betas), **options)
        solver.set_timesteps(steps)
        return solver
