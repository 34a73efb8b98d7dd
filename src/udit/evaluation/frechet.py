"""The Fréchet distance between Gaussians fitted to features, with its bias and confidence interval.

Legend: N samples, D features, S the samples' covariance, R the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    cross = np.linalg.svd(root(a.cov) @ root(b.cov), compute_uv=False).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * cross
    return max(0.0, float(squared))


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
    def of(cls, samples: Array, reference: Statistics, whole: Statistics | None = None) -> Expansion | None:
        """Of features [n, D]; None where N is below ``MIN_SAMPLES`` for each dimension that varies.

        Args:
            samples: all of them, or evenly chosen ones.
            reference: held fixed.
            whole: statistics of all N samples, where ``samples`` are some of them.
        """
        x = np.asarray(samples, np.float64)
        ours = whole or Statistics.of(x)
        count = ours.count or len(x)
        half = root(reference.cov)
        c, axes = np.linalg.eigh(half @ ours.cov @ half)
        kept = c > NULL * max(float(c.max()), np.finfo(float).tiny)
        if count < MIN_SAMPLES * max(1, int(kept.sum())):
            return None
        c, s = c[kept], np.sqrt(c[kept])
        y = x - ours.mean
        z = y @ (half @ axes[:, kept])
        influence = 2 * y @ (ours.mean - reference.mean) + (y**2).sum(1) - (z**2 / s).sum(1)
        weights, z2 = _weights(s), z**2
        diagonal = np.trace(ours.cov) + 0.5 * (np.sum(weights * (z2.T @ z2 / len(x))) - np.sum(np.diag(weights) * c**2))
        return cls(distance(ours, reference), float(diagonal) / count, count, influence, y, z, s)

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


def measure(samples: Array, reference: Statistics, seed: int = 0, whole: Statistics | None = None) -> Distance:
    """The distance of samples to a fixed reference, with its bias and a 95 % interval.

    The interval is that of ``half_width``, by the influence and the pairs of an ``Expansion``, around value - bias,
    clipped at 0.

    Args:
        samples: features [N, D], or evenly chosen ones of them.
        reference: held fixed: the interval ignores that the reference is a sample as well.
        seed: of the pairs.
        whole: statistics of all samples, where ``samples`` are some of them.
    """
    found = Expansion.of(samples, reference, whole)
    if found is None:
        return Distance(distance(whole or Statistics.of(samples), reference), None, None, None)
    half = half_width(found.influence, found.pairs(*some_pairs(len(samples), seed)), found.count)
    centre = found.value - found.bias
    return Distance(found.value, found.bias, max(0.0, centre), (max(0.0, centre - half), max(0.0, centre + half)))


def root(cov: Array) -> Array:
    """The symmetric square root of a covariance [D, D]."""
    values, vectors = np.linalg.eigh(cov)
    found: Array = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return found
