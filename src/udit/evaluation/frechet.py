"""The Fréchet distance between Gaussians fitted to features, with its bias and confidence interval.

Legend: N samples, D features, S the samples' covariance, R the reference's.
"""

from __future__ import annotations

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
        return cls(mean, centred.T @ centred / (len(features) - 1), len(features))


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
    cross = np.linalg.svd(_root(a.cov) @ _root(b.cov), compute_uv=False).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * cross
    return max(0.0, float(squared))


def measure(samples: Array, reference: Statistics, seed: int = 0) -> Distance:
    """The distance of samples to a fixed reference, with its bias and a 95 % interval.

    The distance is expanded to second order in the fluctuation of the samples' mean and covariance (delta method of von
    Mises; Serfling 1980, ch. 6). First order is a mean over samples of an influence function, the second a V-statistic
    of a kernel g over pairs. With C = R^(1/2) S R^(1/2) = U diag(c) U', y = x - mean, z = U' R^(1/2) y, s = sqrt(c):

        influence(x) = 2 y . (mean - mean_R) + |y|^2 - sum_k z_k^2 / s_k
        g(x, x') = y . y' + (1/2) sum_kl (z_k z_l - C_kl) (z'_k z'_l - C_kl) / (s_k s_l (s_k + s_l))
        bias = E g(x, x) / N,  variance = V1 + V2,  V1 = Var influence / N,  V2 = 2 E g(x, x')^2 / N^2

    The plug-in V1 is too large by 2 V2 on average (the empirical mean is not the true one), hence max(V1 - V2, V2).
    The interval is normal around value - bias, clipped at 0.

    Args:
        samples: features [N, D].
        reference: held fixed: the interval ignores that the reference is a sample as well.
        seed: of the pairs.
    """
    x = np.asarray(samples, np.float64)
    ours = Statistics.of(x)
    value, n = distance(ours, reference), len(x)
    root = _root(reference.cov)
    c, axes = np.linalg.eigh(root @ ours.cov @ root)
    kept = c > NULL * max(float(c.max()), np.finfo(float).tiny)
    if n < MIN_SAMPLES * max(1, int(kept.sum())):
        return Distance(value, None, None, None)
    c, s = c[kept], np.sqrt(c[kept])
    y = x - ours.mean
    z = y @ (root @ axes[:, kept])
    z2 = z**2
    influence = 2 * y @ (ours.mean - reference.mean) + (y**2).sum(1) - (z2 / s).sum(1)
    weights = 1 / (np.outer(s, s) * (s[:, None] + s))
    diagonal = np.trace(ours.cov) + 0.5 * (np.sum(weights * (z2.T @ z2 / n)) - np.sum(np.diag(weights) * c**2))
    generator = rng.generator(seed, "pairs")
    first = torch.randint(n, (PAIRS,), generator=generator).numpy()
    second = (first + 1 + torch.randint(n - 1, (PAIRS,), generator=generator).numpy()) % n
    products = z[first] * z[second]
    quadratic = np.sum((products @ weights) * products, 1)
    quadratic += (s.sum() - (z2[first] / s).sum(1) - (z2[second] / s).sum(1)) / 2
    pairs = (y[first] * y[second]).sum(1) + quadratic / 2
    v1, v2 = float(influence.var()) / n, 2 * float(np.mean(pairs**2)) / n**2
    half = NORMAL_975 * float(np.sqrt(max(v1 - v2, v2)))
    bias = float(diagonal) / n
    centre = value - bias
    return Distance(value, bias, max(0.0, centre), (max(0.0, centre - half), max(0.0, centre + half)))


def _root(cov: Array) -> Array:
    values, vectors = np.linalg.eigh(cov)
    root: Array = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root
