"""diffusers' few-step solvers behind our sampler interface.

A fresh solver is built for every call, from an explicit config: no learned variance, no clipping, no thresholding. It
is handed eps (on the DDPM schedule) or the velocity (on a flow path), whatever the network itself predicts. The flow
solvers walk a path's own time. The multistep ones know the linear path alone: where the network's is another they walk
the linear one, whose x_t differs by a scale at the same ratio of noise to signal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.denoise import Target, encode
from udit.diffusion.sample import Denoise, Noise, Step
from udit.diffusion.schedule import DDPM, EDM
from udit.errors import UserError


@dataclass(frozen=True)
class Solver:
    """One of diffusers' solvers: ``dpmpp`` (DPM-Solver++ 2M), ``unipc``, ``flow-euler`` or ``flow-heun``."""

    name: str

    def __call__(self, denoise: Denoise, x: Tensor, steps: int | str, y: Tensor | None, noise: Noise) -> Iterator[Step]:
        """Yields after every network evaluation; draws no noise.

        Raises:
            UserError: a solver of the other schedule, or steps that are not a count.
        """
        if not str(steps).isdecimal() or int(steps) < 1:
            raise UserError(f"steps is {steps!r}; the {self.name} sampler takes a count of at least 1")
        schedule = denoise.schedule
        if isinstance(schedule, EDM):
            raise UserError(f"{self.name} does not know EDM's noise levels; use edm-heun or edm-euler")
        if isinstance(schedule, DDPM) and self.name.startswith("flow-"):
            raise UserError(
                f"{self.name} walks the flow path and the model was trained with DDPM; use ddim, dpmpp or unipc"
            )
        if isinstance(schedule, DDPM) and int(steps) > len(schedule):
            raise UserError(f"steps is {steps}; the schedule has {len(schedule)}, ask for at most so many")
        solver = self._build(schedule.betas if isinstance(schedule, DDPM) else None, int(steps))
        x, own_time = x.float(), self.name.startswith("flow-")
        if not isinstance(schedule, DDPM):
            x = x * float(solver.sigmas[0])  # DPM-Solver++ begins a thousandth short of pure noise
        total = len(solver.timesteps)
        for k, time in enumerate(solver.timesteps, start=1):
            if isinstance(schedule, DDPM):
                prediction = denoise(x, torch.full((len(x),), int(time), device=x.device), y)
                output = prediction.eps
            else:
                # not ``time``: DPM-Solver++ and UniPC round it down to whole thousandths
                sigma = float(solver.sigmas[k - 1])
                place, scale = (sigma, 1.0) if own_time else schedule.from_linear(sigma)
                t = torch.full((len(x),), place, device=x.device)
                prediction = denoise(x * scale, t, y)
                velocity: Target = "gvp" if own_time and schedule.path == "gvp" else "flow"
                output = encode(velocity, prediction.x0, prediction.eps, *schedule.alpha_sigma(t, x))
            x = solver.step(output, time, x, return_dict=False)[0]
            yield Step(k, total, x, prediction.x0)

    def _build(self, betas: np.ndarray[Any, Any] | None, steps: int) -> Any:
        import diffusers

        solver: Any  # diffusers leaves its schedulers untyped
        if self.name == "flow-euler":
            solver = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
            solver.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
            return solver
        if self.name == "flow-heun":
            solver = diffusers.FlowMatchHeunDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
            solver.set_timesteps((steps + 1) // 2)
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
            options |= {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
        else:
            options |= {"prediction_type": "epsilon", "trained_betas": betas, "timestep_spacing": "linspace"}
        solver = kind(num_train_timesteps=1000 if betas is None else len(betas), **options)
        solver.set_timesteps(steps)
        return solver
