"""Which calls of a sampling a step cache should refresh, from what the deep part says along a run without one.

One run is watched. Let D_j be what the deep part says at call j (and d_j, of a guided run, the step from the null
prediction to the label's), t_j the network's time, and s_j by how much the prediction moves where D_j gives way to
D_{j-1}, over how far these lie apart, both squared. A call j that takes V for D_j and v for d_j leads astray by about

    |t_{j+1} - t_{j-1}| / 2 * sqrt(s_j |V - D_j|^2 + (w - 1)^2 |v - d_j|^2)

Errors of neighbouring calls point one way, so they are summed. V is a mixture of one or two kept outputs, so that all
follows from inner products; a dynamic programme over the last two refreshed calls finds the best ones of any number.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udit.diffusion.cache import Seamed, StepCache, fields_of, rewrap, seamed
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import Denoise, Noise, Sampler, sample

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """What was watched, of n calls.

    Attributes:
        times: [n] t_j.
        deep: [n, n] inner products of the D_j.
        slopes: [n] s_j.
        led: [n, n] inner products of the (w - 1) d_j, 0 where nothing was guided.
    """

    times: Array
    deep: Array
    slopes: Array
    led: Array

    def plan(self, count: int, *, guidance: bool = False) -> StepCache:
        """The cache that refreshes ``count`` calls, at most n, and leads least astray, with forecasts or without."""
        (cost, held), (other, forecast) = (self._plan(count, choice, guidance) for choice in (False, True))
        return StepCache(refresh=held if cost <= other else forecast, forecast=other < cost, guidance=guidance)

    def _plan(self, count: int, forecast: bool, guidance: bool) -> tuple[float, tuple[int, ...]]:
        n = len(self.times)
        until = np.zeros((n, n, n + 1))  # [h, i, j]: error of the calls before j where h and i were the last to run
        np.cumsum(self._astray(forecast, guidance), axis=2, out=until[:, :, 1:])
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
        cost, refresh = float(total[h, i]), [i]
        for before in reversed(came):
            refresh.append(h)
            h, i = int(before[h, i]), h
        return cost, tuple(reversed(refresh))

    def _astray(self, forecast: bool, guidance: bool) -> Array:
        """[n, n, n] error of call j where i, and before it h, were the last to run; 0 unless h <= i < j."""
        n, t = len(self.times), self.times
        h, i, j = np.ogrid[:n, :n, :n]
        gap = t[i] - t[h]
        reach = np.where(gap != 0, (t[j] - t[i]) / np.where(gap == 0, 1.0, gap), 0.0) * forecast

        def apart(g: Array) -> Array:
            a, b = 1 + reach, -reach  # V = a D_i + b D_h
            own = a**2 * g[i, i] + b**2 * g[h, h] + 2 * a * b * g[h, i]
            return (own + g[j, j] - 2 * (a * g[i, j] + b * g[h, j])).clip(0)

        squared = self.slopes[j] * apart(self.deep) + (apart(self.led) if guidance else 0.0)
        stride = np.abs(np.gradient(t)) if n > 1 else np.ones(1)
        return np.where((h <= i) & (i < j), stride[j] * np.sqrt(squared), 0.0)


def watch(
    denoise: Denoise,
    x_T: Tensor,
    *,
    scheduler: str | Sampler,
    steps: int | str,
    y: Tensor | None,
    noise: Noise | None = None,
) -> Drift:
    """Draws samples as ``sample`` does, and notes what a cache would have kept; a dozen samples tell enough.

    Raises:
        UserError: as ``sample``, or the network has no parts.
    """
    notes = _Notes(len(x_T))
    for _ in sample(notes.wrap(denoise), x_T, scheduler=scheduler, steps=steps, y=y, noise=noise):
        pass
    return notes.drift()


@dataclass
class _Notes:
    """Of one run; of a guided batch, the labels' half."""

    size: int
    times: list[float] = field(default_factory=list)
    deep: list[Tensor] = field(default_factory=list)
    slopes: list[float] = field(default_factory=list)
    led: dict[int, Tensor] = field(default_factory=dict)

    def wrap(self, denoise: Denoise) -> Denoise:
        """The denoiser, watched."""
        denoise = rewrap(denoise, lambda backbone: _Watched(seamed(backbone), self))
        if not isinstance(denoise, Guided):
            return denoise
        return _WatchedGuided(**fields_of(denoise), notes=self)

    def drift(self) -> Drift:
        """All of it as inner products."""
        led = np.zeros((len(self.times),) * 2)
        at = sorted(self.led)
        if at:
            led[np.ix_(at, at)] = _products([self.led[call] for call in at])
        return Drift(np.array(self.times), _products(self.deep), np.array(self.slopes), led)


def _products(rows: list[Tensor]) -> Array:
    stacked = torch.stack([row.flatten().float() for row in rows])
    found: Array = (stacked @ stacked.T).double().cpu().numpy()
    return found


@dataclass
class _Watched:
    """A backbone whose deep part is noted."""

    network: Seamed
    notes: _Notes

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As the network; what leaves is made once more, of the deep part as it was, to see how much that tells."""
        cond, notes, half = self.network.condition(t, y), self.notes, slice(self.notes.size)
        entered, skips = self.network.enter(x, cond)
        deep = self.network.deep(entered, cond)
        out = self.network.leave(deep, skips, cond)
        kept = (deep if skips is not None else deep - entered)[half]
        slope = 0.0
        if notes.deep:
            other = deep.clone()
            other[half] = notes.deep[-1] if skips is not None else notes.deep[-1] + entered[half]
            moved = (self.network.leave(other, skips, cond) - out)[half].square().sum()
            slope = float(moved / (kept - notes.deep[-1]).square().sum().clamp_min(1e-30))
        notes.times.append(float(t[0]))
        notes.deep.append(kept)
        notes.slopes.append(slope)
        return out


@dataclass(frozen=True)
class _WatchedGuided(Guided):
    """A guided denoiser whose steps from the null prediction are noted."""

    notes: _Notes = field(kw_only=True)

    def halves(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As ``Guided``."""
        cond, uncond, variance = super().halves(x_t, t, y)
        self.notes.led[len(self.notes.times) - 1] = (self.scale - 1) * (cond - uncond)
        return cond, uncond, variance
