"""Parity of SiT's transport and REPA's loss and samplers, around a closed-form network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.alignment import alignment_loss
from udit.diffusion.denoiser import Backbone, Denoiser, Prediction
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import guide
from udit.diffusion.sample import Sampler, sample
from udit.diffusion.schedule import Schedule
from udit.diffusion.transport import ProbabilityFlow, Stochastic, transport_loss
from udit.parity import Check, Disagreement, close, number, seed_of

SHAPE, LABELS, NULL = (2, 4, 8, 8), (3, 7), 1000
INPUTS = {"flow_x0_seed", "loss_t", "guidance_interval"}
PATHS = {"linear": "linear", "cosine": "gvp", "Linear": "linear", "GVP": "gvp", "VP": "vp"}
SIT_LOSS = r"sit_loss_(Linear|GVP|VP)_(velocity|noise|score)(?:_(velocity|likelihood))?"
REPA = r"repa_(euler|heun|sde)_(linear|cosine)_(\d+)_w(\d+(?:\.\d+)?)"
SIT_ODE = r"sit_ode_(Linear|GVP)_(euler|heun2)_(\d+)"
SIT_SDE = r"sit_sde_(Linear|GVP)_(sigma|linear|decreasing|bump)_(Euler|Heun)_(Mean|Euler|Tweedie|None)_(\d+)"


def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The closed form in place of a network, in float32 whatever x's dtype."""
    x, t = x.float(), t.float().view(-1, 1, 1, 1)
    label = 0.0 if y is None else 0.001 * y.float().view(-1, 1, 1, 1)
    return torch.tanh(0.9 * x + 0.3 * x.roll(1, dims=-1) - 0.2 * t + label)


def later_network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The same on SiT's time, which is 1 at data."""
    return network(x, 1 - t, y)


def reversed_network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """A velocity on SiT's time in the library's direction."""
    return -network(x, 1 - t, y)


@dataclass
class _Guided:
    """REPA's guidance: Heun's corrector is guided where its predictor was, whatever its own time."""

    denoiser: Denoiser
    weight: float
    interval: tuple[float, float]
    heun: bool
    decided: list[bool] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        """The denoiser's."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        corrector = self.heun and len(self.decided) % 2 == 1
        inside = self.decided[-1] if corrector else self.interval[0] <= float(t[0]) <= self.interval[1]
        self.decided.append(inside)
        raw, _ = self.denoiser.raw(x, t, y)
        if inside and self.weight > 1:
            assert y is not None
            raw = guide(raw, self.denoiser.raw(x, t, torch.full_like(y, NULL))[0], self.weight)
        return self.denoiser.decode(raw, None, x, t)

    def check_labels(self, y: Tensor | None, batch: int | None = None) -> None:
        """Any label is one of the closed form's."""


def check(arrays: Mapping[str, np.ndarray]) -> list[Check]:
    """Compares every array of a file of losses and trajectories.

    Args:
        arrays: the file's.

    Returns:
        One check an array.
    """
    case = _Case(arrays)
    makers: dict[str, Callable[..., Tensor]] = {
        r"repa_loss_(linear|cosine)": lambda path: case.loss(path, "velocity", None, reverse=False),
        r"repa_align": case.align,
        SIT_LOSS: case.loss,
        REPA: case.repa,
        SIT_ODE: case.ode,
        SIT_SDE: case.sde,
    }
    checks: list[Check] = []
    for name in arrays:
        match, make = next(
            ((found, make) for pattern, make in makers.items() if (found := re.fullmatch(pattern, name))), (None, None)
        )
        if match and make:
            checks.append(close(name, make(*match.groups()), arrays[name]))
        elif name not in INPUTS:
            checks.append(Check(f"{name} (unknown array)", np.inf, 0.0))
    return checks


class _Case:
    """One file's draws."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.seed = seed_of("flow_x0_seed", arrays["flow_x0_seed"])
        self.arrays = arrays

    def normal(self, offset: int, shape: tuple[int, ...]) -> Tensor:
        """Drawn from the file's seed plus ``offset``."""
        return torch.from_numpy(np.random.RandomState(self.seed + offset).standard_normal(shape).astype(np.float32))

    def loss(self, path: str, predicted: str, weight: str | None = None, reverse: bool = True) -> Tensor:
        """[B] losses; ``reverse``: SiT's time and velocity run the other way."""
        stored = self.arrays.get("loss_t", np.zeros(0))
        if stored.ndim != 1 or not stored.size or stored.dtype.kind not in "iuf":
            raise Disagreement("loss_t (is missing, or no row of times)")
        shape = (len(stored), *SHAPE[1:])
        x0, noise = self.normal(0, shape).clamp(-1, 1), self.normal(1, shape)
        t, made = torch.from_numpy(stored.astype(np.float32)), cast(Backbone, network)
        if reverse:
            first, last = (1e-3, 1 - 1e-3) if predicted != "velocity" else (0.0, 1.0)
            t = 1 - (first + t * (last - first) if path != "VP" else t * (1 - 1e-5))
            made = reversed_network if predicted == "velocity" else later_network
        y = torch.arange(len(stored))
        how = {"path": PATHS[path], "predicted": predicted, "weight": weight or "none"}
        return transport_loss(made, x0, t, noise, y, **how)  # type: ignore[arg-type]

    def align(self) -> Tensor:
        """The alignment term of two encoders."""
        features, projections = (self.normal(offset, (2, 8, 16, 6)) for offset in (5, 6))
        return alignment_loss(projections, features).mean()

    def walk(self, denoiser: object, sampler: Sampler, steps: int, x: Tensor) -> Tensor:
        """The last state."""

        def noise(k: int) -> Tensor:
            return self.normal(999 * self.seed + k, SHAPE)  # of 1000 S + k

        for step in sample(denoiser, x, sampler=sampler, steps=steps, y=torch.tensor(LABELS), noise=noise):  # type: ignore[arg-type]
            x = step.x
        return x

    def repa(self, method: str, path: str, steps: str, weight: str) -> Tensor:
        """REPA's samplers, whose state is float64."""
        name = "guidance_interval"
        if name not in self.arrays or self.arrays[name].size != 2:
            raise Disagreement(f"{name} (is missing, or no pair of times)")
        low, high = (number(name, end) for end in self.arrays[name].reshape(2, 1))
        flow = Flow(PATHS[path])  # type: ignore[arg-type]
        denoiser = Denoiser(network, flow, target=flow.target, time="unit")
        guided = _Guided(denoiser, float(weight), (low, high), heun=method == "heun")
        sampler: Sampler = (
            Stochastic("linear") if method == "sde" else ProbabilityFlow(heun=method == "heun", correct_last=False)
        )
        return self.walk(guided, sampler, int(steps), self.normal(2, SHAPE).double())

    def ode(self, path: str, method: str, points: str) -> Tensor:
        """SiT's ODE at ``points`` times."""
        sampler = ProbabilityFlow(heun=method == "heun2")
        return self.walk(self.sit(path), sampler, int(points) - 1, self.normal(2, SHAPE))

    def sde(self, path: str, form: str, method: str, last: str, steps: str) -> Tensor:
        """SiT's SDE."""
        sampler = Stochastic(form, method == "Heun", last.lower())  # type: ignore[arg-type]
        return self.walk(self.sit(path), sampler, int(steps), self.normal(2, SHAPE))

    def sit(self, path: str) -> Denoiser:
        """The closed form as SiT's velocity."""
        flow = Flow(PATHS[path])  # type: ignore[arg-type]
        return Denoiser(network, flow, flow.target, time="unit", num_classes=10, reversed_flow=True)
