"""How noise is added: x_t = alpha(t) x0 + sigma(t) eps.

``DDPM`` is discrete and variance preserving; its t is an index, 0 the cleanest. ``Flow`` is continuous; t = 0 is data,
t = 1 noise: alpha = 1 - t, sigma = t, and the velocity dx_t/dt is eps - x0; or alpha and sigma are a cosine and a sine.
This is the library's one convention for flow; importers and solvers with another convert. ``EDM`` is continuous, too:
alpha = 1, sigma = t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from udit.errors import UserError

TimeUnit = Literal["index", "unit", "sigma"]
Table = np.ndarray[tuple[int], np.dtype[np.float64]]


def gather(table: Table, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a float64 table at indices t [B], cast to ``like``'s dtype (float32 at least) as [B, 1, 1, 1]."""
    values = torch.from_numpy(table).to(t.device)[t]
    return values.to(torch.promote_types(like.dtype, torch.float32)).view(-1, *[1] * (like.ndim - 1))


class Schedule(Protocol):
    """What the rest of the tower asks of a schedule."""

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at t [B], shaped [B, 1, 1, 1]."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """One training time as a scalar tensor."""

    def fraction(self, t: Tensor) -> Tensor:
        """t as a float in 0 (data) ... 1 (noise)."""

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """t in the unit a network was built for."""


@dataclass(frozen=True)
class DDPM:
    """Discrete variance-preserving schedule in float64 (Ho et al. 2020), with ADM's respacing.

    Attributes:
        betas: [T] noise variances, cleanest step first.
        timesteps: [T] indices in the training schedule, which the network is told.
        train_steps: length of the training schedule.
    """

    betas: Table
    timesteps: np.ndarray[tuple[int], np.dtype[np.int64]]
    train_steps: int

    @staticmethod
    def linear(steps: int = 1000) -> DDPM:
        """Betas linear from 0.1 / T to 20 / T."""
        return DDPM(np.linspace(0.1 / steps, 20 / steps, steps, dtype=np.float64), np.arange(steps), steps)

    @staticmethod
    def scaled_linear(steps: int = 1000) -> DDPM:
        """Betas whose roots are linear, from 0.85 / T to 12 / T; the network is told 1 to T (Rombach et al. 2022)."""
        roots = np.linspace(np.sqrt(0.85 / steps), np.sqrt(12 / steps), steps, dtype=np.float64)
        return DDPM(roots**2, np.arange(1, steps + 1), steps)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Table:
        """[T] signal variance left: the product of 1 - beta."""
        alpha_bar: Table = np.cumprod(1 - self.betas, dtype=np.float64)
        return alpha_bar

    @cached_property
    def alpha_bar_prev(self) -> Table:
        """[T] ``alpha_bar`` one step cleaner; 1 at the end."""
        return np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def posterior_variance(self) -> Table:
        """[T] variance of q(x_{t-1} | x_t, x0)."""
        return self.betas * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

    @cached_property
    def posterior_log_variance(self) -> Table:
        """[T] its logarithm, the zero at t = 0 replaced by its neighbour."""
        return np.log(np.append(self.posterior_variance[1], self.posterior_variance[1:]))

    @cached_property
    def posterior_coefficients(self) -> tuple[Table, Table]:
        """[T] weights of x0 and x_t in the mean of q(x_{t-1} | x_t, x0)."""
        rest = 1 - self.alpha_bar
        return (
            self.betas * np.sqrt(self.alpha_bar_prev) / rest,
            (1 - self.alpha_bar_prev) * np.sqrt(1 - self.betas) / rest,
        )

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at t [B] int64, shaped [B, 1, 1, 1]."""
        return gather(np.sqrt(self.alpha_bar), t, like), gather(np.sqrt(1 - self.alpha_bar), t, like)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training time: uniform over the indices."""
        return torch.randint(len(self), (), generator=generator)

    def fraction(self, t: Tensor) -> Tensor:
        """t as a float: index in the training schedule over its last index, 1 at most."""
        return (self._original(t).double() / (self.train_steps - 1)).clamp(max=1)

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """Index in the training schedule; that over its length; or the noise-to-signal ratio."""
        if unit == "index":
            return self._original(t)
        if unit == "unit":
            return self._original(t).float() / self.train_steps
        return torch.from_numpy(np.sqrt(1 / self.alpha_bar - 1)).to(t.device)[t].float()

    def _original(self, t: Tensor) -> Tensor:
        return torch.from_numpy(self.timesteps).to(t.device)[t]

    def respaced(self, sections: int | str) -> DDPM:
        """The schedule over a part of its steps, at which alpha_bar is unchanged (ADM).

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
        return DDPM(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]), self.timesteps[kept], self.train_steps)


def _space(total: int, sections: str) -> set[int]:
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


@dataclass(frozen=True)
class Flow:
    """A path from data to noise; times are floats in [0, 1].

    Attributes:
        path: ``linear``, x_t = (1 - t) x0 + t eps; or ``gvp``, x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps, which
            preserves the variance (Albergo & Vanden-Eijnden 2023; Ma et al. 2024, SiT).
    """

    path: Literal["linear", "gvp"] = "linear"

    INDEX_SCALE: ClassVar[float] = 1000.0
    """What t = 1 is to a network whose time unit is an index."""

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales of signal and noise at t [B], shaped [B, 1, 1, 1]."""
        t = t.to(torch.promote_types(like.dtype, torch.float32)).view(-1, *[1] * (like.ndim - 1))
        return (1 - t, t) if self.path == "linear" else ((t * (math.pi / 2)).cos(), (t * (math.pi / 2)).sin())

    def from_linear(self, sigma: float) -> tuple[float, float]:
        """Where this path has the linear one's ratio of noise to signal: its time, its x_t over the other's."""
        if self.path == "linear":
            return sigma, 1.0
        return math.atan2(sigma, 1 - sigma) / (math.pi / 2), 1 / math.hypot(sigma, 1 - sigma)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training time: uniform in [0, 1)."""
        return torch.rand((), generator=generator)

    def fraction(self, t: Tensor) -> Tensor:
        """t itself."""
        return t.double()

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """t; 1000 t as an index; or the ratio of noise to signal."""
        if unit != "sigma":
            return t if unit == "unit" else t * self.INDEX_SCALE
        alpha, sigma = self.alpha_sigma(t, t)
        return sigma / alpha.clamp_min(1e-6)


@dataclass(frozen=True)
class EDM:
    """Noise by its level: x = x0 + t eps (Karras et al. 2022, Table 1).

    Attributes:
        sigma_min: lowest level that sampling passes before the data.
        sigma_max: where it starts.
        rho: its levels are even in sigma ** (1 / rho).
        log_mean: of ln sigma in training, where that is normal.
        log_std: its standard deviation.
        resolutions: where training draws sigma by an interpolated cosine, sides of two resolutions over the picture's;
            the cosine schedule of the first rules near noise, that of the second near data.
        sigma_data: standard deviation of the data, at which such a schedule's signal and noise are even.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    log_mean: float = -1.2
    log_std: float = 1.2
    resolutions: tuple[float, float] | None = None
    sigma_data: float = 0.5

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """1 and t, shaped [B, 1, 1, 1]."""
        sigma = t.to(torch.promote_types(like.dtype, torch.float32)).view(-1, *[1] * (like.ndim - 1))
        return torch.ones_like(sigma), sigma

    def draw(self, generator: torch.Generator) -> Tensor:
        """A training level: log-normal, or by the interpolated cosine at a uniform time."""
        if self.resolutions is None:
            return (self.log_mean + self.log_std * torch.randn((), generator=generator)).exp()
        return self.interpolated_cosine(torch.rand((), generator=generator))

    def interpolated_cosine(self, t: Tensor) -> Tensor:
        """Levels from ``sigma_min`` at t = 0 to ``sigma_max`` at t = 1 (Hoogeboom et al. 2023, Sec. 3.1).

        A cosine schedule is sigma / sigma_data = tan(angle), with angles even in time. Shifted for a resolution r times
        the picture's side, its tangents are divided by r; two such schedules are mixed in the logarithm.
        """
        assert self.resolutions is not None

        def shifted(r: float) -> Tensor:
            low, high = (math.atan(r * level / self.sigma_data) for level in (self.sigma_min, self.sigma_max))
            return torch.tan(low + t.double() * (high - low)) * self.sigma_data / r

        noisy, clean = (shifted(r).log() for r in self.resolutions)
        return (t * noisy + (1 - t) * clean).exp().float()

    def fraction(self, t: Tensor) -> Tensor:
        """Where t stands on sampling's ladder."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((t.double() ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)

    def network_time(self, t: Tensor, unit: TimeUnit) -> Tensor:
        """t; or the time at which the flow path has the same ratio of noise to signal."""
        flow = t / (1 + t)
        return {"sigma": t, "unit": flow, "index": flow * Flow.INDEX_SCALE}[unit]

    def ladder(self, steps: int) -> Table:
        """[steps + 1] levels from ``sigma_max`` to ``sigma_min``, then 0 (Eq. 5)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        rungs = high + np.linspace(0, 1, steps, dtype=np.float64) * (low - high)
        return np.append(rungs**self.rho, 0.0)
