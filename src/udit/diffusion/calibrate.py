"""Which calls of a sampling run a step cache should refresh, from the deep part's outputs along a run without cache.

One run is recorded. Call j is at network time t_j; D_j is the deep part's output and p_j(D_j) the prediction from it.

*One call.* A cache gives call j some V in place of D_j. The prediction then changes by p_j(V) - p_j(D_j), to first
order J_j (V - D_j), with J_j the derivative of the prediction by the deep part's output. Its size is measured along the
one direction that is at hand, the step from the call before:

    s_j = |p_j(D_{j-1}) - p_j(D_j)|^2 / |D_{j-1} - D_j|^2        so that   |p_j(V) - p_j(D_j)|^2 ~ s_j |V - D_j|^2

*Guidance.* The guided prediction is u_j + w (c_j - u_j) = c_j + (w - 1) d_j with d_j = c_j - u_j. Keeping v in place of
d_j changes it by (w - 1) (v - d_j). The two errors are taken as orthogonal, so that their squares add.

*The step.* A sampler integrates predictions over time; by the trapezoidal rule call j has the weight
|t_{j+1} - t_{j-1}| / 2. So call j adds to the error of the sample about

    e_j = |t_{j+1} - t_{j-1}| / 2 * sqrt(s_j |V - D_j|^2 + (w - 1)^2 |v - d_j|^2)

*The run.* Errors of neighbouring calls point in about the same direction, so the estimate of a run is the sum of e_j,
not the root of the sum of squares.

V = a D_i + b D_h is a combination of the outputs at the last two refreshed calls h < i < j (a = 1, b = 0 where the last
one is reused; a = 1 + r, b = -r with r = (t_j - t_i) / (t_i - t_h) where they are extrapolated), so

    |V - D_j|^2 = a^2 <D_i, D_i> + b^2 <D_h, D_h> + 2 a b <D_h, D_i> + <D_j, D_j> - 2 a <D_i, D_j> - 2 b <D_h, D_j>

needs nothing but inner products. A dynamic programme over (h, i) finds the calls of the least estimate for any number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udit.diffusion.cache import SplitBackbone, StepCache, fields_of, split
from udit.diffusion.guidance import AnyDenoiser, Guided
from udit.diffusion.sample import Noise, Sampler, sample
from udit.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """What was recorded of n calls; symbols as in the module's docstring.

    Attributes:
        times: [n] t_j.
        deep: [n, n] inner products of the D_j.
        slopes: [n] s_j.
        guidance: [n, n] inner products of the (w - 1) d_j, 0 where nothing was guided.
    """

    times: Array
    deep: Array
    slopes: Array
    guidance: Array

    def plan(self, count: int, *, guidance: bool = False) -> StepCache:
        """The cache of least estimated error that refreshes ``count`` calls, at most n; it forecasts if that is better.

        Args:
            count: calls that run the deep part.
            guidance: whether the others keep guidance's difference, too.
        """
        (error, reused), (other, forecast) = (self._plan(count, choice, guidance) for choice in (False, True))
        return StepCache(refresh=reused if error <= other else forecast, forecast=other < error, guidance=guidance)

    def _plan(self, count: int, forecast: bool, guidance: bool) -> tuple[float, tuple[int, ...]]:
        n = len(self.times)
        until = np.zeros((n, n, n + 1))  # [h, i, j]: error of the calls before j where h and i were the last to run
        np.cumsum(self._errors(forecast, guidance), axis=2, out=until[:, :, 1:])
        best = np.full((n, n), np.inf)
        best[0, 0] = 0.0  # the first call has none before it and stands for both
        came = []
        for _ in range(count - 1):
            paths = best[:, :, None] + until[:, :, :n]
            paths[:, *np.tril_indices(n)] = np.inf  # the next comes after the last
            came.append(paths.argmin(axis=0))
            best = paths.min(axis=0)
        total = best + until[:, :, n]
        h, i = (int(k) for k in np.unravel_index(int(total.argmin()), total.shape))
        error, refresh = float(total[h, i]), [i]
        for before in reversed(came):
            refresh.append(h)
            h, i = int(before[h, i]), h
        return error, tuple(reversed(refresh))

    def _errors(self, forecast: bool, guidance: bool) -> Array:
        """[n, n, n] e_j where i, and before it h, were the last to run; 0 unless h <= i < j."""
        n, t = len(self.times), self.times
        h, i, j = np.ogrid[:n, :n, :n]
        gap = t[i] - t[h]
        reach = np.where(gap != 0, (t[j] - t[i]) / np.where(gap == 0, 1.0, gap), 0.0) * forecast

        def distance(g: Array) -> Array:
            """|V - D_j|^2 of inner products."""
            a, b = 1 + reach, -reach
            own = a**2 * g[i, i] + b**2 * g[h, h] + 2 * a * b * g[h, i]
            return (own + g[j, j] - 2 * (a * g[i, j] + b * g[h, j])).clip(0)

        squared = self.slopes[j] * distance(self.deep) + (distance(self.guidance) if guidance else 0.0)
        weight = np.abs(np.gradient(t)) if n > 1 else np.ones(1)
        return np.where((h <= i) & (i < j), weight[j] * np.sqrt(squared), 0.0)


def watch(
    denoiser: AnyDenoiser,
    x_T: Tensor,
    *,
    sampler: str | Sampler,
    steps: int | str,
    y: Tensor | None,
    noise: Noise | None = None,
) -> Drift:
    """Draws samples as ``sample`` does and records what a cache would have kept; a dozen samples are enough.

    Raises:
        UserError: as ``sample``, or the network does not come in parts.
    """
    record = _Record(len(x_T))
    for _ in sample(record.wrap(denoiser), x_T, sampler=sampler, steps=steps, y=y, noise=noise):
        pass
    return record.drift()


@dataclass
class _Record:
    """Of one run; of a guided batch, the conditional half."""

    size: int
    times: list[float] = field(default_factory=list)
    deep: list[Tensor] = field(default_factory=list)
    slopes: list[float] = field(default_factory=list)
    guidance: dict[int, Tensor] = field(default_factory=dict)
    """(w - 1) d_j by call."""

    def wrap(self, denoiser: AnyDenoiser) -> AnyDenoiser:
        """The denoiser, recorded.

        Raises:
            UserError: a weaker model guides it, whose calls would be recorded as its own.
        """
        if isinstance(denoiser, Guided) and denoiser.weak is not None:
            raise UserError("steps to cache are chosen for one network; leave the weaker model (autoguide) out")
        denoiser = denoiser.with_network(lambda backbone: _RecordedBackbone(split(backbone), self))
        if not isinstance(denoiser, Guided):
            return denoiser
        return _RecordedGuidance(**fields_of(denoiser), record=self)

    def drift(self) -> Drift:
        """All of it as inner products."""
        guidance = np.zeros((len(self.times),) * 2)
        at = sorted(self.guidance)
        if at:
            guidance[np.ix_(at, at)] = _products([self.guidance[call] for call in at])
        return Drift(np.array(self.times), _products(self.deep), np.array(self.slopes), guidance)


def _products(rows: list[Tensor]) -> Array:
    stacked = torch.stack([row.flatten().float() for row in rows])
    found: Array = (stacked @ stacked.T).double().cpu().numpy()
    return found


@dataclass
class _RecordedBackbone:
    """A backbone whose deep part is recorded."""

    network: SplitBackbone
    record: _Record

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As the network; ``leave`` runs a second time with the deep output of the call before, for s_j."""
        cond, record, half = self.network.condition(t, y), self.record, slice(self.record.size)
        entered, skips = self.network.enter(x, cond)
        deep = self.network.deep(entered, cond)
        out = self.network.leave(deep, skips, cond)
        kept = (deep if skips is not None else deep - entered)[half]
        slope = 0.0
        if record.deep:
            other = deep.clone()
            other[half] = record.deep[-1] if skips is not None else record.deep[-1] + entered[half]
            moved = (self.network.leave(other, skips, cond) - out)[half].square().sum()
            slope = float(moved / (kept - record.deep[-1]).square().sum().clamp_min(1e-30))
        record.times.append(float(t[0]))
        record.deep.append(kept)
        record.slopes.append(slope)
        return out


@dataclass(frozen=True)
class _RecordedGuidance(Guided):
    """A guided denoiser whose differences of conditional and null prediction are recorded."""

    record: _Record = field(kw_only=True)

    def halves(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``Guided``."""
        cond, uncond, variance = super().halves(x_t, t, y)
        self.record.guidance[len(self.record.times) - 1] = (self.guidance - 1) * (cond - uncond)
        return cond, uncond, variance
