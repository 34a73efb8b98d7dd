"""The Fréchet distance between Gaussians fitted to features, with its bias and confidence interval.

Legend: N samples, D features, S the samples' covariance, R the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udit import rng

Array = NDArray[np.float64]
Interval = tuple[float, float]

NORMAL_975 = 1.959964
PAIRS = 4000
"""Pairs of samples over which the second-order variance is averaged."""
MIN_SAMPLES = 10
"""Samples per dimension that the expansion behind the interval needs at least."""
NULL = 1e-10
"""Variances below this share of the largest are treated as zero."""
TINY = float(np.finfo(float).tiny)


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and unbiased covariance [D, D] of features, in float64."""

    mean: Array
    cov: Array
    count: int | None = None
    """Number of images, where known."""

    @classmethod
    def of(cls, features: Array) -> Statistics:
        """Of features [N, D], N >= 2."""
        features = np.asarray(features, np.float64)
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / max(1, len(features) - 1), len(features))

    @classmethod
    def joined(cls, parts: Sequence[Statistics]) -> Statistics:
        """Of several sets as of one (Chan, Golub & LeVeque 1979); the count of each is known."""
        total, *rest = parts
        for part in rest:
            assert total.count and part.count, "counted"
            count, apart = total.count + part.count, part.mean - total.mean
            scatter = (total.count - 1) * total.cov + (part.count - 1) * part.cov
            scatter += np.outer(apart, apart) * (total.count * part.count / count)
            total = cls(total.mean + apart * (part.count / count), scatter / (count - 1), count)
        return total


@dataclass(frozen=True)
class Distance:
    """A measured Fréchet distance, and an estimate of the distance with unlimited samples."""

    value: float
    """As the literature reports it: from N samples, biased upwards by about ``bias``."""
    bias: float | None
    """None where there are too few samples for the expansion; the same holds for the next two."""
    debiased: float | None
    interval: Interval | None
    """95 %, of the distance between the generator's distribution and this reference."""


def distance(a: Statistics, b: Statistics) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017).

    |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)). The last trace is the sum of singular values of A^(1/2)
    B^(1/2), which needs no inverse, so covariances may be singular.
    """
    return Target(b).distance(a)


class Target:
    """A reference that sets of samples are compared with; the root of its covariance is found once."""

    def __init__(self, reference: Statistics) -> None:
        """Takes its statistics."""
        self.reference = reference
        self.root = root(reference.cov)

    def distance(self, statistics: Statistics) -> float:
        """``distance`` of statistics to the reference."""
        values = np.linalg.svd(root(statistics.cov) @ self.root, compute_uv=False)
        return self._distance(statistics.mean, float(np.trace(statistics.cov)), values)

    def distance_of(self, samples: Array) -> tuple[float, Array]:
        """The same of samples [N, D], which is less work where N is below D.

        Returns:
            The distance, and the roots of the eigenvalues of R^(1/2) S R^(1/2) that are not zero for lack of samples.
        """
        mean, n = samples.mean(0), len(samples)
        centred = (samples - mean) / max(1, n - 1) ** 0.5
        values = np.linalg.svd(centred @ self.root, compute_uv=False)
        return self._distance(mean, float((centred**2).sum()), values), values

    def _distance(self, mean: Array, trace: float, values: NDArray[np.floating[Any]]) -> float:
        apart = np.sum((mean - self.reference.mean) ** 2)
        return max(0.0, float(apart + trace + np.trace(self.reference.cov) - 2 * values.sum()))


@dataclass(frozen=True)
class Expansion:
    """The distance of samples to a fixed reference, to second order in the fluctuation of their mean and covariance.

    The delta method of von Mises (Serfling 1980, ch. 6). First order is a mean over samples of an influence function,
    the second a V-statistic of a kernel g over pairs. With C = R^(1/2) S R^(1/2) = U diag(c) U', y = x - mean,
    z = U' R^(1/2) y, s = sqrt(c):

        influence(x) = 2 y . (mean - mean_R) + |y|^2 - sum_k z_k^2 / s_k
        g(x, x') = y . y' + (1/2) sum_kl (z_k z_l - C_kl) (z'_k z'_l - C_kl) / (s_k s_l (s_k + s_l))
        bias = E g(x, x) / N
    """

    value: float
    """The distance itself, biased."""
    bias: float
    count: int
    """N, all samples."""
    influence: Array
    """[n], of the samples at hand, up to a constant."""
    y: Array
    """[n, D]"""
    z: Array
    """[n, K], K of the D dimensions vary."""
    s: Array
    """[K]"""

    @classmethod
    def of(cls, samples: Array, target: Target, whole: Statistics | None = None) -> Expansion | float:
        """Of features [n, D]; the distance alone where N is below ``MIN_SAMPLES`` for each dimension that varies.

        Args:
            samples: all of them, or evenly chosen ones.
            target: the reference, held fixed.
            whole: statistics of all N samples, where ``samples`` are some of them.
        """
        x = np.asarray(samples, np.float64)
        count = len(x) if whole is None else whole.count or len(x)
        if count == len(x) < x.shape[1]:
            value, found = target.distance_of(x)
            if count < MIN_SAMPLES * max(1, int((found**2 > NULL * max(found.max() ** 2, TINY)).sum())):
                return value
        ours = whole or Statistics.of(x)
        value, mean = target.distance(ours), target.reference.mean
        c, axes = np.linalg.eigh(target.root @ ours.cov @ target.root)
        kept = c > NULL * max(float(c.max()), TINY)
        if count < MIN_SAMPLES * max(1, int(kept.sum())):
            return value
        c, s = c[kept], np.sqrt(c[kept])
        y = x - ours.mean
        z = y @ (target.root @ axes[:, kept])
        z2 = z**2
        influence = 2 * y @ (ours.mean - mean) + (y**2).sum(1) - (z2 / s).sum(1)
        weights = _weights(s)
        diagonal = np.trace(ours.cov) + 0.5 * (np.sum(weights * (z2.T @ z2 / len(x))) - np.sum(np.diag(weights) * c**2))
        return cls(value, float(diagonal) / count, count, influence, y, z, s)

    def pairs(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> Array:
        """g of pairs of samples, which are named by their places [P]."""
        products, z2 = self.z[first] * self.z[second], self.z**2
        quadratic = np.sum((products @ _weights(self.s)) * products, 1)
        quadratic += (self.s.sum() - (z2[first] / self.s).sum(1) - (z2[second] / self.s).sum(1)) / 2
        found: Array = (self.y[first] * self.y[second]).sum(1) + quadratic / 2
        return found


def _weights(s: Array) -> Array:
    found: Array = 1 / (np.outer(s, s) * (s[:, None] + s))
    return found


def some_pairs(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``PAIRS`` random pairs of different places below ``count``."""
    generator = rng.generator(seed, "pairs")
    first = torch.randint(count, (PAIRS,), generator=generator).numpy()
    return first, (first + 1 + torch.randint(count - 1, (PAIRS,), generator=generator).numpy()) % count


def half_width(influence: Array, pairs: Array, count: int) -> float:
    """Half of a 95 % interval of a statistic that is known to second order.

    Its variance is V1 + V2 with V1 = Var influence / N and V2 = 2 E g(x, x')^2 / N^2. The plug-in V1 is too large by
    2 V2 on average (the empirical mean is not the true one), hence max(V1 - V2, V2).

    Args:
        influence: of samples, all or evenly chosen ones, [n].
        pairs: g of some pairs of them, [P].
        count: N.
    """
    v1, v2 = float(influence.var()) / count, 2 * float(np.mean(pairs**2)) / count**2
    return NORMAL_975 * float(np.sqrt(max(v1 - v2, v2)))


def measure(samples: Array, reference: Statistics | Target, seed: int = 0, whole: Statistics | None = None) -> Distance:
    """The distance of samples to a fixed reference, with its bias and a 95 % interval.

    The interval is that of ``half_width``, by the influence and the pairs of an ``Expansion``, around value - bias,
    clipped at 0.

    Args:
        samples: features [N, D], or evenly chosen ones of them.
        reference: held fixed: the interval ignores that the reference is a sample as well.
        seed: of the pairs.
        whole: statistics of all samples, where ``samples`` are some of them.
    """
    found = Expansion.of(samples, reference if isinstance(reference, Target) else Target(reference), whole)
    if isinstance(found, float):
        return Distance(found, None, None, None)
    half = half_width(found.influence, found.pairs(*some_pairs(len(samples), seed)), found.count)
    centre = found.value - found.bias
    return Distance(found.value, found.bias, max(0.0, centre), (max(0.0, centre - half), max(0.0, centre + half)))


def root(cov: Array) -> Array:
    """The symmetric square root of a covariance [D, D]."""
    values, vectors = np.linalg.eigh(cov)
    found: Array = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return found
