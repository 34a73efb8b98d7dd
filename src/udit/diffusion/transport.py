"""SiT's stochastic interpolants (Ma et al. 2024, arXiv 2401.08740): losses, and samplers of the ODE and of the SDEs.

As everywhere in the library t = 0 is data and t = 1 noise; SiT's own time is 1 - t. With x_t = alpha x0 + sigma eps,
the velocity u = alpha' x0 + sigma' eps and the score s = -eps / sigma, the probability flow is dx = u dt, and for any
w(t) >= 0 the SDE

    dx = (u - w s) dt + sqrt(2 w) dW        (t from 1 to 0)

has the same distribution at every t. REPA's sampler (Yu et al. 2025, arXiv 2410.06940) is that with w = t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor

from udit.diffusion.config import check_sampler
from udit.diffusion.denoiser import Backbone
from udit.diffusion.guidance import AnyDenoiser
from udit.diffusion.learning import shifted
from udit.diffusion.origin import Origin, begun, remaining
from udit.diffusion.sample import Noise, Step
from udit.diffusion.schedule import everywhere
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.diffusion.flow import Flow

Path = Literal["linear", "gvp", "vp"]
Form = Literal["sigma", "linear", "decreasing", "bump"]
Last = Literal["mean", "euler", "tweedie", "none"]
Predicted = Literal["velocity", "noise", "score"]
Weight = Literal["none", "velocity", "likelihood"]

BETA = (0.1, 20.0)
"""Of the variance-preserving path: beta grows linearly from data to noise (Song et al. 2021)."""


class Coefficients(NamedTuple):
    """A path at time t; float64, of t's shape."""

    alpha: Tensor
    sigma: Tensor
    alpha_slope: Tensor
    """d alpha / dt."""
    sigma_slope: Tensor

    @property
    def diffusion(self) -> Tensor:
        """w under which the path is a diffusion of the data: sigma sigma' - sigma^2 alpha' / alpha."""
        return self.sigma * self.sigma_slope - self.sigma.square() * self.alpha_slope / self.alpha


def coefficients(path: Path, t: Tensor) -> Coefficients:
    """Scales of signal and noise at t, and their slopes."""
    t = t.double()
    one = torch.ones_like(t)
    if path == "linear":
        return Coefficients(1 - t, t, -one, one)
    if path == "gvp":
        turn = math.pi / 2
        cos, sin = (turn * t).cos(), (turn * t).sin()
        return Coefficients(cos, sin, -turn * sin, turn * cos)
    low, high = BETA
    log_alpha, slope = -t.square() * (high - low) / 4 - t * low / 2, -t * (high - low) / 2 - low / 2
    alpha, sigma = log_alpha.exp(), (-(2 * log_alpha).expm1()).sqrt()
    return Coefficients(alpha, sigma, alpha * slope, -alpha.square() * slope / sigma)


def transport_loss(
    network: Backbone,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    y: Tensor | None = None,
    *,
    path: Path = "linear",
    predicted: Predicted = "velocity",
    weight: Weight = "none",
) -> Tensor:
    """Weighted squared error of what a network predicts.

    Args:
        network: gets x_t, t and y; predicts u, eps or s.
        x0: [B, C, H, W] data.
        t: [B] in (0, 1).
        noise: [B, C, H, W].
        y: [B] labels or None.
        path: from data to noise.
        predicted: what the network predicts.
        weight: of noise and score: 1, or that under which the loss is the velocity's, or bounds the likelihood.

    Returns:
        [B] loss of each sample.
    """
    if weight != "none" and predicted == "velocity":
        raise UserError(f"weight is {weight!r}; the loss of a velocity has none, leave it at 'none'")
    at = coefficients(path, t.view(-1, *[1] * (x0.ndim - 1)))
    alpha, sigma, alpha_slope, sigma_slope = (part.to(x0.dtype) for part in at)
    output = network(alpha * x0 + sigma * noise, t, y)
    if predicted == "velocity":
        error = output - (alpha_slope * x0 + sigma_slope * noise)
    else:
        error = output - noise if predicted == "noise" else sigma * output + noise
    scale = {
        "none": torch.ones_like(at.sigma),
        "velocity": (at.diffusion / at.sigma).square(),
        "likelihood": at.diffusion / at.sigma.square(),
    }[weight]
    return (scale.to(x0.dtype) * error.square()).flatten(1).mean(dim=1)


Velocity = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(x, t) -> (u, s, the guess of x0)."""


def path_of(denoiser: AnyDenoiser) -> Path:
    """The path of a denoiser's schedule.

    Raises:
        UserError: it was not trained with flow matching.
    """
    process = denoiser.schedule.process
    if Stochastic.name not in process.samplers():
        raise UserError(f"{process.title} has no path from data to noise; take a model that was trained as a flow")
    return cast("Flow", denoiser.schedule).path


def velocity_along(denoiser: AnyDenoiser, y: Tensor | None, path: Path) -> Velocity:
    """What a denoiser says of a path at any x and time, for labels y."""

    def at(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        prediction = denoiser(x, everywhere(float(t), x, precise), y)
        c = Coefficients(*(part.to(x.dtype) for part in coefficients(path, t)))
        u = c.alpha_slope * prediction.x0 + c.sigma_slope * prediction.eps
        return u, -prediction.eps / c.sigma, prediction.x0

    return at


@dataclass(frozen=True)
class ProbabilityFlow:
    """Euler's or Heun's method along the probability flow, in equal steps of time.

    Attributes:
        heun: corrects each step by the velocity at its end.
        correct_last: corrects the last step too, whose end is t = 0; REPA does not.
    """

    heun: bool = False
    correct_last: bool = True

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """As ``Sampler.times``; a corrected step asks at both of its ends."""
        asked: list[Tensor] = []
        grid = _remaining(denoiser, _grid(int(steps) + 1), strength)
        for k, pair in enumerate(pairwise(grid), start=2):
            asked += pair if self.heun and (k < len(grid) or self.correct_last) else pair[:1]
        return denoiser.network_time(torch.stack(asked).float())

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every step; ``steps`` counts them. Draws no noise."""
        velocity = velocity_along(denoiser, y, path_of(denoiser))
        grid, x = _start(denoiser, _grid(int(steps) + 1), x, origin)
        total = len(grid) - 1
        for k, (now, after) in enumerate(pairwise(grid), start=1):
            dt = float(after - now)
            u, _, x0 = velocity(x, now)
            ahead = x + dt * u
            if self.heun and (k < total or self.correct_last):
                ahead = x + dt / 2 * (u + velocity(ahead, after)[0])
            x = ahead
            yield Step(k, total, x, x0)


@dataclass(frozen=True)
class Heun:
    """Heun's method along the probability flow for a number of network evaluations; the last step is Euler's.

    n evaluations are (n - 1) / 2 equal steps of two each, and a last step of one, which ends at the data. Its length is
    1 / (2 n), so that the error falls with n as Heun's does; at 3 evaluations it is a half, as long as the other step.
    Trained networks decided: on a mixture of normals, 5 and 9 evaluations are better in equal steps. Digits,
    N = 1,000, Fréchet distance of the judge's features at 3, 5 and 9 evaluations, in brackets with a last step of a
    thousandth, as diffusers has it: U-DiT 0.92, 0.30, 0.31 (4.35, 0.49, 0.32), DiT of another seed 0.97, 0.51, 0.32
    (6.31, 0.97, 0.36). On the bent GVP path Euler's method is closer to the exact flow below 11 evaluations.
    """

    name: ClassVar[str] = "flow-heun"

    def grid(self, steps: int | str) -> Tensor:
        """Times from 1 to 0, float64; an even number of evaluations is taken for the odd one below."""
        pairs = (int(steps) - 1) // 2
        count = 2 * pairs + 1
        last = 1 / 2 if pairs == 1 else 1 / (2 * count)
        return torch.cat([_grid(pairs + 1, last) if pairs else torch.ones(1, dtype=torch.float64), torch.zeros(1)])

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """As ``Sampler.times``."""
        check_sampler(self.name, denoiser.schedule.process, steps)
        *pairs, last = pairwise(_remaining(denoiser, self.grid(steps), strength))
        return denoiser.network_time(torch.stack([*(time for pair in pairs for time in pair), last[0]]).float())

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every network evaluation: a step of Euler's, then the same step corrected. Draws no noise.

        Raises:
            UserError: the model was not trained with flow matching, or steps are not a count.
        """
        check_sampler(self.name, denoiser.schedule.process, steps)
        velocity = velocity_along(denoiser, y, path_of(denoiser))
        grid, x = _start(denoiser, self.grid(steps), x.float(), origin)
        *pairs, last = pairwise(grid)
        total, count = 2 * len(pairs) + 1, 0
        for now, after in pairs:
            dt = float(after - now)
            first, _, x0 = velocity(x, now)
            ahead = x + dt * first
            yield Step(count := count + 1, total, ahead, x0)
            second, _, x0 = velocity(ahead, after)
            x = x + dt / 2 * (first + second)
            yield Step(count := count + 1, total, x, x0)
        u, _, x0 = velocity(x, last[0])
        yield Step(total, total, x - float(last[0]) * u, x0)


@dataclass(frozen=True)
class Stochastic:
    """Euler-Maruyama's or Heun's method along the reverse SDE of a chosen w(t), then a last step without noise.

    Attributes:
        form: w(t): sigma; t; (1 - cos(pi t))^2 / 4; or sin^2(pi t).
        heun: a second evaluation corrects each step but the last.
        last: the last step: along the SDE's drift, along the probability flow, to the guess of x0, or none.
        last_size: where in t it starts.
    """

    form: Form = "sigma"
    heun: bool = False
    last: Last = "mean"
    last_size: float = 0.04
    name: ClassVar[str] = "flow-sde"

    def weight(self, path: Path, t: Tensor) -> float:
        """w(t)."""
        if self.form == "sigma":
            return float(coefficients(path, t).sigma)
        if self.form == "linear":
            return float(t)
        angle = math.pi * float(t)
        return (1 - math.cos(angle)) ** 2 / 4 if self.form == "decreasing" else math.sin(angle) ** 2

    def grid(self, steps: int | str) -> Tensor:
        """[steps] times from 1 to where the last step starts."""
        return _grid(int(steps), 0.0 if self.last == "none" else self.last_size)

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """As ``Sampler.times``."""
        check_sampler(self.name, denoiser.schedule.process, steps)
        grid = _remaining(denoiser, self.grid(steps), strength, ends=self.last == "none")
        asked = [time for pair in pairwise(grid) for time in (pair if self.heun else pair[:1])]
        return denoiser.network_time(torch.stack([*asked, *grid[-1:]] if self.last != "none" else asked).float())

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every step.

        ``steps`` counts the times of the grid: without Heun's correction, and with a last step, network evaluations.

        Raises:
            UserError: the model was not trained with flow matching, or steps are not a count.
        """
        check_sampler(self.name, denoiser.schedule.process, steps)
        path = path_of(denoiser)
        velocity = velocity_along(denoiser, y, path)
        grid, x = _start(denoiser, self.grid(steps), x, origin, ends=self.last == "none")
        total = len(grid) - (self.last == "none")

        def drift(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            u, score, x0 = velocity(x, t)
            return u - self.weight(path, t) * score, x0

        for k, (now, after) in enumerate(pairwise(grid), start=1):
            dt = float(after - now)
            kick = math.sqrt(2 * self.weight(path, now) * -dt) * noise(k).to(x)
            if self.heun:
                x = x + kick
                first, x0 = drift(x, now)
                x = x + dt / 2 * (first + drift(x + dt * first, after)[0])
            else:
                first, x0 = drift(x, now)
                x = x + dt * first + kick
            yield Step(k, total, x, x0)
        if self.last != "none":
            end = grid[-1]
            u, score, x0 = velocity(x, end)
            if self.last == "mean":
                u = u - self.weight(path, end) * score
            yield Step(total, total, x0 if self.last == "tweedie" else x - float(end) * u, x0)


def _grid(count: int, end: float = 0.0) -> Tensor:
    """``count`` times from 1 to ``end``, float64."""
    return torch.linspace(1, end, count, dtype=torch.float64)


def _shifted(denoiser: AnyDenoiser, grid: Tensor) -> Tensor:
    """A grid moved by the schedule's shift."""
    return shifted(grid, cast("Flow", denoiser.schedule).shift)


def _remaining(denoiser: AnyDenoiser, grid: Tensor, strength: float, *, ends: bool = True) -> Tensor:
    return remaining(denoiser.schedule, _shifted(denoiser, grid), strength, ends=ends)


def _start(
    denoiser: AnyDenoiser, grid: Tensor, x: Tensor, origin: Origin | None, *, ends: bool = True
) -> tuple[Tensor, Tensor]:
    return begun(denoiser.schedule, _shifted(denoiser, grid), x, origin, ends=ends)
