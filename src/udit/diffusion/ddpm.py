"""DDPM: discrete variance-preserving diffusion, its hybrid loss, and its samplers, the ancestral step and DDIM.

q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t) (Ho et al. 2020, Eq. 2), so that with
alpha_bar_t = prod_{s <= t} (1 - beta_s)

    x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps       (Eq. 4)

Times are indices: t = 0 is the cleanest step, T - 1 the noisiest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.config import DDPMConfig, check_sampler
from udit.diffusion.denoiser import Denoiser, Prediction, mix
from udit.diffusion.guidance import AnyDenoiser
from udit.diffusion.learning import Learning
from udit.diffusion.likelihood import pixel_log_likelihood
from udit.diffusion.objective import Losses
from udit.diffusion.origin import Origin, skipped
from udit.diffusion.sample import Noise, Step
from udit.diffusion.schedule import Schedule, Table, TimeUnit, everywhere, gather, placed
from udit.diffusion.targets import Target, encode
from udit.errors import UserError

TableName = Literal["signal", "noise", "of_x0", "of_xt", "log_posterior", "log_fixed", "log_beta", "ratio", "timestep"]
"""Roots of alpha_bar and of 1 - alpha_bar; weights of x0 and x_t in the posterior's mean; logarithms of its variance,
of the larger fixed one (at t = 0 as the posterior's) and of beta; noise over signal; what the network gets."""
NAMES: tuple[TableName, ...] = get_args(TableName)


@dataclass(frozen=True)
class DDPM(Schedule):
    """The tables of a DDPM process in float64, with ADM's respacing.

    Attributes:
        betas: [T] noise variances, cleanest step first.
        timesteps: [T] indices in the training schedule, which the network gets.
        train_steps: length of the training schedule.
        predict: what networks are trained to predict.
        learning: which times training draws, and how it weighs their errors.
    """

    process: ClassVar = DDPMConfig
    time: ClassVar[TimeUnit] = "index"

    betas: Table
    timesteps: np.ndarray[tuple[int], np.dtype[np.int64]]
    train_steps: int
    predict: Literal["eps", "x0", "v"] = "eps"
    learning: Learning = field(default_factory=Learning)
    alpha_bar: Table = field(init=False, compare=False, repr=False)
    """[T] remaining signal variance: the product of 1 - beta."""
    alpha_bar_prev: Table = field(init=False, compare=False, repr=False)
    """[T] ``alpha_bar`` one step cleaner; 1 at the end."""
    posterior_variance: Table = field(init=False, compare=False, repr=False)
    """[T] variance of q(x_{t-1} | x_t, x0) (Ho et al. 2020, Eq. 7)."""
    posterior_log_variance: Table = field(init=False, compare=False, repr=False)
    """[T] its logarithm; at t = 0, where the variance is 0, that of t = 1 (ADM)."""
    posterior_coefficients: tuple[Table, Table] = field(init=False, compare=False, repr=False)
    """[T] weights of x0 and x_t in the mean of q(x_{t-1} | x_t, x0) (Ho et al. 2020, Eq. 7)."""
    _tables: np.ndarray[tuple[int, int], np.dtype[np.float64]] = field(init=False, compare=False, repr=False)
    """[len(NAMES), T] all of them."""
    _rows: dict[torch.device, Tensor] = field(init=False, compare=False, repr=False)
    """The same by device."""

    @staticmethod
    def linear(steps: int = 1000) -> DDPM:
        """Betas linear from 0.1 / T to 20 / T."""
        return DDPM(np.linspace(0.1 / steps, 20 / steps, steps, dtype=np.float64), np.arange(steps), steps)

    @staticmethod
    def scaled_linear(steps: int = 1000) -> DDPM:
        """Square roots of betas linear from 0.85 / T to 12 / T; networks get 1 to T (Rombach et al. 2022)."""
        roots = np.linspace(np.sqrt(0.85 / steps), np.sqrt(12 / steps), steps, dtype=np.float64)
        return DDPM(roots**2, np.arange(1, steps + 1), steps)

    @staticmethod
    def cosine(steps: int = 1000) -> DDPM:
        """alpha_bar falls as a squared cosine; betas are 0.999 at most (Nichol & Dhariwal 2021, Eq. 17)."""
        angles = (np.linspace(0, 1, steps + 1, dtype=np.float64) + 0.008) / 1.008 * np.pi / 2
        alpha_bar = np.cos(angles) ** 2
        return DDPM(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999), np.arange(steps), steps)

    def zero_terminal(self) -> DDPM:
        """The process rescaled so that no signal is left at the last step (Lin et al. 2024, Alg. 1)."""
        signal = np.sqrt(self.alpha_bar)
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        alpha_bar = signal**2
        return replace(self, betas=1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def target(self) -> Target:
        """What ``predict`` says; eps by default (Ho et al. 2020, Sec. 3.2)."""
        return self.predict

    def __post_init__(self) -> None:
        """Computes the tables. Not when they are first asked for, as a compiler of graphs stops at such a property."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a schedule may have no noise at first, no signal at last
            alpha_bar: Table = np.cumprod(1 - self.betas, dtype=np.float64)
            previous, rest = np.append(1.0, alpha_bar[:-1]), 1 - alpha_bar
            variance = self.betas * (1 - previous) / rest
            # in place of the variance at t = 0; a schedule of one step has no t = 1, and its sampler draws no noise
            first = float(variance[1] if len(self.betas) > 1 else self.betas[0])
            of_x0 = self.betas * np.sqrt(previous) / rest
            of_xt = (1 - previous) * np.sqrt(1 - self.betas) / rest
            smallest, largest = (np.log(np.append(first, values[1:])) for values in (variance, self.betas))
            rows = [np.sqrt(alpha_bar), np.sqrt(rest), of_x0, of_xt, smallest, largest, np.log(self.betas)]
            rows += [np.sqrt(1 / alpha_bar - 1), self.timesteps.astype(np.float64)]
        values: dict[str, Any] = {
            "alpha_bar": alpha_bar,
            "alpha_bar_prev": previous,
            "posterior_variance": variance,
            "posterior_log_variance": smallest,
            "posterior_coefficients": (of_x0, of_xt),
            "_tables": np.stack(rows),
            "_rows": {},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def table(self, name: TableName, device: torch.device) -> Tensor:
        """[T] float64 on a device, to which all tables are copied once; float32 where it has no float64."""
        rows = self._rows.get(device)
        if rows is None:
            rows = self._rows[device] = placed(self._tables, device)
        return rows[NAMES.index(name)]

    def at(self, name: TableName, t: Tensor, like: Tensor) -> Tensor:
        """Entries of a table at indices t [B], in ``like``'s dtype (float32 at least), as [B, 1, 1, 1]."""
        return gather(self.table(name, t.device), t, like)

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at t [B] int64, shaped [B, 1, 1, 1]."""
        return self.at("signal", t, like), self.at("noise", t, like)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training time: uniform over the indices, or by ``learning``'s density."""
        if self.learning.density.name == "uniform":
            return torch.randint(len(self), (), generator=generator)
        return (self.learning.draw(generator) * len(self)).long().clamp(max=len(self) - 1)

    def density(self, t: Tensor) -> Tensor:
        """Probability of the indices t [B] times their number, before a weighting takes its place."""
        return self.learning.density.pdf((t.double() + 0.5) / len(self))

    def fraction(self, t: Tensor) -> Tensor:
        """t as a float: index in the training schedule over its last index, 1 at most."""
        return (self._original(t).double() / (self.train_steps - 1)).clamp(max=1)

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """Index in the training schedule; that over its length; or the noise-to-signal ratio."""
        if unit == "index":
            return self._original(t)
        if unit == "unit":
            return self._original(t).float() / self.train_steps
        return self.table("ratio", t.device)[t].float()

    def loss(self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
        """``hybrid_loss``."""
        return hybrid_loss(denoiser, x0, t, noise, y)

    def discrete_betas(self) -> Table:
        """[T] noise variances."""
        return self.betas

    def _original(self, t: Tensor) -> Tensor:
        return self.table("timestep", t.device)[t].long()

    def respaced(self, sections: int | str) -> DDPM:
        """The process over a part of its steps, at which alpha_bar is unchanged (ADM).

        Args:
            sections: a count; comma-separated counts, one for each equal part of the schedule; or ``"ddimN"`` for N
                steps at the one whole stride that gives exactly N.

        Raises:
            UserError: the schedule cannot be split so.
        """
        if sections in ("", len(self), str(len(self))):
            return self
        kept = np.array(sorted(_space(len(self), str(sections))))
        alpha_bar = self.alpha_bar[kept]
        betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
        return replace(self, betas=betas, timesteps=self.timesteps[kept])


def _space(total: int, sections: str) -> set[int]:
    """Indices that remain of ``total`` steps."""
    if sections.startswith("ddim") and sections[4:].isdecimal():
        wanted = int(sections[4:])
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == wanted:
                return set(range(0, total, stride))
        raise UserError(
            f"steps is {sections}: no whole stride takes exactly {wanted} of {total} steps; try a plain count"
        )
    counts = sections.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise UserError(f"steps is {sections!r}; give a count (50), counts per section (10,20,20) or ddimN (ddim50)")
    size, extra = divmod(total, len(counts))
    kept: set[int] = set()
    start = 0
    for i, count in enumerate(map(int, counts)):
        length = size + (i < extra)
        if count > length:
            raise UserError(
                f"steps is {sections}: a section of {length} steps cannot give {count}; ask for at most {length}"
            )
        step = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.add(start + round(position))
            position += step
        start += length
    return kept


def hybrid_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
    """Squared error of the target, eps mostly, plus the variational bound, which trains the learned variance alone.

    L_simple = |eps - eps_theta(x_t, t)|^2 (Ho et al. 2020, Eq. 14); with learned variance L_hybrid = L_simple + lambda
    L_vlb, the gradient of L_vlb stopped at the mean (Nichol & Dhariwal 2021, Eq. 16). L_vlb sums over the T steps; its
    term at t has weight 1 here, which is lambda = 1 / T.

    Args:
        denoiser: on a DDPM schedule; without learned variance this is the squared error alone.
        x0: [B, C, H, W] data; the bound at t = 0 takes it as 8-bit pixels scaled to [-1, 1].
        t: [B] int64 indices.
        noise: [B, C, H, W].
        y: [B] labels, some dropped, or None.
    """
    schedule = denoiser.schedule
    assert isinstance(schedule, DDPM), "the variational bound needs a discrete schedule"
    x_t = mix(schedule, x0, noise, t)
    prediction, variance = denoiser.raw(x_t, t, y)
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    learning, goal, alpha, sigma = schedule.learning, noise, t, t
    if learning.weighs or denoiser.target != "eps":
        alpha, sigma = schedule.alpha_sigma(t, x0)
        goal = encode(denoiser.target, x0, noise, alpha, sigma)
    density = schedule.density(t) if learning.weighting == "density" else t
    loss, mse = learning.losses(denoiser.target, prediction, goal, alpha, sigma, density)
    if variance is None:
        return Losses(loss, mse)
    frozen = denoiser.decode(prediction.detach(), None, x_t, t)
    vb = _bound_term(schedule, frozen.x0, variance.to(prediction.dtype), x0, x_t, t)
    return Losses(loss + vb, mse, vb)


def ancestral_moments(schedule: DDPM, x0: Tensor, variance: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (Ho et al. 2020, Eq. 7) and log variance (Nichol & Dhariwal 2021, Eq. 15) of p(x_{t-1} | x_t).

    Args:
        schedule: the process.
        x0: [B, C, H, W] the predicted x0.
        variance: [B, C, H, W] learned-range fraction: -1 is the posterior variance, 1 is beta_t.
        x_t: [B, C, H, W].
        t: [B] int64.
    """
    of_x0, of_xt = schedule.at("of_x0", t, x_t), schedule.at("of_xt", t, x_t)
    smallest, largest = schedule.at("log_posterior", t, x_t), schedule.at("log_beta", t, x_t)
    share = (variance + 1) / 2
    return of_x0 * x0 + of_xt * x_t, share * largest + (1 - share) * smallest


def _bound_term(schedule: DDPM, pred_x0: Tensor, variance: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """KL(q(x_{t-1} | x_t, x0) || p) in bits per dimension, or at t = 0 the likelihood of 8-bit pixels; [B]."""
    mean, log_variance = ancestral_moments(schedule, pred_x0, variance, x_t, t)
    of_x0, of_xt = schedule.at("of_x0", t, x_t), schedule.at("of_xt", t, x_t)
    true_mean, true_log = of_x0 * x0 + of_xt * x_t, schedule.at("log_posterior", t, x_t)
    kl = 0.5 * (
        log_variance
        - true_log
        - 1
        + (true_log - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )
    nll = -pixel_log_likelihood(x0, mean, 0.5 * log_variance)
    first = (t == 0).view(-1, *[1] * (x0.ndim - 1))
    return torch.where(first, nll, kl).mean(dim=(1, 2, 3)) / math.log(2)


def _respaced(name: str, denoiser: AnyDenoiser, steps: int | str) -> tuple[AnyDenoiser, DDPM]:
    check_sampler(name, denoiser.schedule.process, steps)
    denoiser = denoiser.respaced(steps)
    schedule = denoiser.schedule
    assert isinstance(schedule, DDPM)
    return denoiser, schedule


def _indices(schedule: DDPM, strength: float) -> Tensor:
    """[n] the indices that sampling visits, noisiest first: those up to a strength."""
    indices = torch.arange(len(schedule)).flip(0)
    return indices if strength == 1 else indices[skipped(schedule, indices, strength) :]


def _times(name: str, denoiser: AnyDenoiser, steps: int | str, strength: float) -> Tensor:
    denoiser, schedule = _respaced(name, denoiser, steps)
    return denoiser.network_time(_indices(schedule, strength))


def _start(schedule: DDPM, x: Tensor, origin: Origin | None) -> tuple[list[int], Tensor]:
    """The indices that sampling visits, and x at the first of them."""
    indices = _indices(schedule, origin.strength if origin else 1.0)
    return indices.tolist(), x if origin is None else origin.noised(schedule, indices[0], x)


def _x0(prediction: Prediction, clip: bool) -> Tensor:
    return prediction.x0.clamp(-1, 1) if clip else prediction.x0


@dataclass(frozen=True)
class Ancestral:
    """DDPM's ancestral step (Ho et al. 2020, Alg. 2): x_{t-1} ~ p(x_{t-1} | x_t).

    The variance is the learned-range one (Nichol & Dhariwal 2021), or beta_t for networks that do not learn it.
    """

    name: ClassVar[str] = "ddpm"
    clip: bool = False

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """[steps] as ``Sampler.times``."""
        return _times(self.name, denoiser, steps, strength)

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every step; noise is not drawn at the last one."""
        denoiser, schedule = _respaced(self.name, denoiser, steps)
        indices, x = _start(schedule, x, origin)
        for k, i in enumerate(indices, start=1):
            t = everywhere(i, x, torch.int64)
            prediction = denoiser(x, t, y)
            x0 = _x0(prediction, self.clip)
            if prediction.variance is not None:
                mean, log_variance = ancestral_moments(schedule, x0, prediction.variance.to(x0.dtype), x, t)
            else:
                mean, _ = ancestral_moments(schedule, x0, torch.zeros_like(x), x, t)
                log_variance = schedule.at("log_fixed", t, x)
            x = mean + (0.5 * log_variance).exp() * noise(k) if i else mean
            yield Step(k, len(indices), x, x0)


@dataclass(frozen=True)
class DDIM:
    """The implicit step (Song et al. 2021, Eq. 12), with a fraction ``eta`` of fresh noise (Eq. 16)."""

    name: ClassVar[str] = "ddim"
    eta: float = 0.0
    clip: bool = False

    def times(self, denoiser: AnyDenoiser, steps: int | str, strength: float = 1.0) -> Tensor:
        """[steps] as ``Sampler.times``."""
        return _times(self.name, denoiser, steps, strength)

    def __call__(
        self,
        denoiser: AnyDenoiser,
        x: Tensor,
        steps: int | str,
        y: Tensor | None,
        noise: Noise,
        origin: Origin | None = None,
    ) -> Iterator[Step]:
        """Yields after every step; noise is drawn for eta > 0 only, and not at the last step."""
        denoiser, schedule = _respaced(self.name, denoiser, steps)
        indices, x = _start(schedule, x, origin)
        bar, bar_prev = schedule.alpha_bar, schedule.alpha_bar_prev
        sigma = self.eta * np.sqrt((1 - bar_prev) / (1 - bar)) * np.sqrt(1 - bar / bar_prev)  # Eq. 16
        turned = np.stack([np.sqrt(bar_prev), np.sqrt(1 - bar_prev - sigma**2), sigma])
        of_x0, of_eps, fresh = placed(turned, x.device)
        for k, i in enumerate(indices, start=1):
            t = everywhere(i, x, torch.int64)
            x0 = _x0(denoiser(x, t, y), self.clip)
            eps = (x - schedule.at("signal", t, x) * x0) / schedule.at("noise", t, x)
            x = gather(of_x0, t, x) * x0 + gather(of_eps, t, x) * eps
            if i and self.eta:
                x = x + gather(fresh, t, x) * noise(k)
            yield Step(k, len(indices), x, x0)
