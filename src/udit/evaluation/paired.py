"""Two sets of images of the same seeds: by how much their scores differ, with an interval of the difference.

Images of one seed have the same noise and the same label, so that much of what makes a score vary from seeds to seeds
is the same in both sets and cancels. Row i of ``a`` and row i of ``b`` are always of one seed. The reference is held
fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from udit import rng
from udit.errors import UserError
from udit.evaluation.frechet import NORMAL_975, Array, Expansion, Statistics, Target, half_width, some_pairs
from udit.evaluation.mind import influences
from udit.spec.base import Spec

GROUPS = 20
"""Of samples, each of which the jackknife leaves out once."""
STUDENT_975 = 2.093024
"""Of ``GROUPS`` - 1 degrees of freedom."""
LEAST = 2 * GROUPS
"""Seeds that a comparison needs."""
BLOCK = 1024


class Difference(Spec):
    """By how much a score of A is larger than that of B, over the same seeds."""

    a: float
    """The score of A by itself, as it is reported."""
    b: float
    value: float
    """A minus B, after each one's bias has been taken off where it is known."""
    interval: tuple[float, float]
    """95 %, of A minus B with unlimited seeds; of a score with an unknown bias, with this many."""
    method: str
    """How the interval was found."""

    @property
    def separate(self) -> bool:
        """Whether the interval excludes zero, so that A and B can be told apart."""
        return not self.interval[0] <= 0 <= self.interval[1]


def frechet_difference(a: Array, b: Array, reference: Statistics, seed: int = 0) -> Difference:
    """The Fréchet distance of A to a reference minus that of B.

    Where there are at least ``frechet.MIN_SAMPLES`` samples for each dimension that varies, both distances are
    expanded to second order (``frechet.Expansion``): the bias of each is taken off, and the variance of the difference
    is that of the differences of both influences and of both kernels at the same seeds. With fewer samples, the
    difference is that of the biased distances, and its interval is a jackknife's over ``GROUPS`` groups of seeds,
    with Student's t; its variance errs upwards (Efron & Stein 1981).

    Args:
        a: features [N, D] of the images of N seeds.
        b: features [N, D] of the other way of drawing, of the same seeds in the same order.
        reference: statistics of the real images' features.
        seed: of the pairs or of the groups.

    Raises:
        UserError: the sets do not have the same shape, or fewer than ``LEAST`` seeds.
    """
    _check(a, b)
    target = Target(reference)
    ours, theirs = (Expansion.of(x, target) for x in (a, b))
    if isinstance(ours, float) or isinstance(theirs, float):
        return _jackknife(_LeavingOut(a, target), _LeavingOut(b, target), seed)
    places = some_pairs(len(a), seed)
    half = half_width(ours.influence - theirs.influence, ours.pairs(*places) - theirs.pairs(*places), len(a))
    value = (ours.value - ours.bias) - (theirs.value - theirs.bias)
    return Difference(
        a=ours.value, b=theirs.value, value=value, interval=(value - half, value + half), method="expansion"
    )


def kernel_difference(a: Array, b: Array, reference: Array, seed: int = 0) -> Difference:
    """The squared MMD of A to a reference minus that of B, under KID's cubic kernel, over all images.

    Both are unbiased U-statistics (Gretton et al. 2012); the interval is of second order, as ``half_width`` has it.

    Args:
        a: features [N, D].
        b: features [N, D], of the same seeds.
        reference: features [M, D].
        seed: of the pairs.

    Raises:
        UserError: the sets do not have the same shape, or fewer than ``LEAST`` seeds.
    """
    _check(a, b)
    places, constant = some_pairs(len(a), seed), _mean_kernel(reference)
    (ours, rows_a), (theirs, rows_b) = (_kernel_rows(x, reference) for x in (a, b))
    pairs = _centred(a, rows_a, places) - _centred(b, rows_b, places)
    means = [float((own - 2 * other).mean()) for own, other in (rows_a, rows_b)]
    half = half_width(ours - theirs, pairs, len(a))
    value = means[0] - means[1]
    return Difference(
        a=means[0] + constant,
        b=means[1] + constant,
        value=value,
        interval=(value - half, value + half),
        method="expansion",
    )


def mind_difference(a: Array, b: Array, reference: Array, seed: int = 0) -> Difference:
    """MIND of A minus MIND of B, along the same directions and with the same images of the reference.

    Its interval is of first order: each sample's influence is the mean over directions of the optimal transport's
    potential (``mind.influences``). The bias of both is of the same size, and is not taken off.

    Args:
        a: features [N, D].
        b: features [N, D], of the same seeds.
        reference: features [M, D], M >= N.
        seed: of directions and of the images taken from the reference.

    Raises:
        UserError: the sets do not have the same shape, fewer than ``LEAST`` seeds, or a smaller reference.
    """
    _check(a, b)
    (ours, psi_a), (theirs, psi_b) = (influences(x, reference, seed=seed) for x in (a, b))
    half = NORMAL_975 * float((psi_a - psi_b).std(ddof=1)) / len(a) ** 0.5
    value = ours - theirs
    return Difference(a=ours, b=theirs, value=value, interval=(value - half, value + half), method="influence")


def agreement_difference(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Difference:
    """Share of A's images of the requested class minus that of B's (Agresti & Min 2005, of matched pairs).

    Args:
        a: whether each image of A is of its class, [N].
        b: the same of B, of the same seeds.

    Raises:
        UserError: the sets do not have the same length, or fewer than ``LEAST`` seeds.
    """
    _check(a[:, None], b[:, None])
    n = len(a) + 2
    only_a, only_b = int((a & ~b).sum()) + 0.5, int((b & ~a).sum()) + 0.5
    value = float(a.mean() - b.mean())
    centre = (only_a - only_b) / n
    half = NORMAL_975 * float(np.sqrt(((only_a + only_b) - (only_a - only_b) ** 2 / n) / n**2))
    interval = (max(-1.0, centre - half), min(1.0, centre + half))
    return Difference(a=float(a.mean()), b=float(b.mean()), value=value, interval=interval, method="matched pairs")


def require_same_seeds(a: Mapping[str, object], b: Mapping[str, object], keys: Sequence[str]) -> None:
    """Refuses two sets that are not of the same seeds, labels, features and reference.

    Raises:
        UserError: names the keys at which their facts differ.
    """
    if wrong := [key for key in keys if a.get(key) != b.get(key)]:
        raise UserError(
            f"these differ in {', '.join(wrong)}, so their images are no pairs; score both with the same seeds, number "
            "of images, features and reference"
        )


def _check(a: NDArray[np.generic], b: NDArray[np.generic]) -> None:
    if a.shape != b.shape or a.ndim != 2 or len(a) < LEAST:
        raise UserError(
            f"features are {list(a.shape)} and {list(b.shape)}; needed are at least {LEAST} seeds, the same in both"
        )


class _LeavingOut:
    """The Fréchet distance to a reference of subsets of some samples."""

    def __init__(self, x: Array, target: Target) -> None:
        self.x, self.reference = np.asarray(x, np.float64), target.reference
        self.z = (self.x - target.reference.mean) @ target.root

    def __call__(self, rows: NDArray[np.int64]) -> float:
        """As ``frechet.distance``: the cross term is the sum of singular values of centred x R^(1/2)."""
        x, z, n = self.x[rows], self.z[rows], len(rows)
        mean, z = x.mean(0), z - z.mean(0)
        gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
        cross = np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum() / (n - 1) ** 0.5
        trace = ((x - mean) ** 2).sum() / (n - 1)
        squared = np.sum((mean - self.reference.mean) ** 2) + trace + np.trace(self.reference.cov) - 2 * cross
        return max(0.0, float(squared))


def _jackknife(a: _LeavingOut, b: _LeavingOut, seed: int) -> Difference:
    order = torch.randperm(len(a.x), generator=rng.generator(seed, "groups")).numpy()
    ours, theirs = a(order), b(order)
    left = [
        np.concatenate([p for k, p in enumerate(parts) if k != i])
        for parts in [np.array_split(order, GROUPS)]
        for i in range(GROUPS)
    ]
    found = np.array([a(rows) - b(rows) for rows in left])
    half = STUDENT_975 * float(np.sqrt((GROUPS - 1) / GROUPS * ((found - found.mean()) ** 2).sum()))
    value = ours - theirs
    return Difference(a=ours, b=theirs, value=value, interval=(value - half, value + half), method="jackknife")


def _kernel(a: Array, b: Array) -> Array:
    found: Array = (a @ b.T / a.shape[1] + 1) ** 3
    return found


def _kernel_rows(x: Array, reference: Array) -> tuple[Array, tuple[Array, Array]]:
    """The influence of each sample on the squared MMD; the means of its kernel with the others and the reference."""
    n = len(x)
    own, other = np.empty(n), np.empty(n)
    for i in range(0, n, BLOCK):
        rows = slice(i, min(i + BLOCK, n))
        within = _kernel(x[rows], x)
        own[rows] = (within.sum(1) - within[np.arange(len(within)), np.arange(rows.start, rows.stop)]) / (n - 1)
        other[rows] = sum(
            _kernel(x[rows], reference[j : j + BLOCK]).sum(1) for j in range(0, len(reference), BLOCK)
        ) / len(reference)
    return 2 * (own - other), (own, other)


def _centred(x: Array, rows: tuple[Array, Array], places: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Array:
    """The kernel of pairs without what each of both contributes to first order."""
    first, second = places
    own = rows[0]
    found: Array = (np.sum(x[first] * x[second], 1) / x.shape[1] + 1) ** 3 - own[first] - own[second] + own.mean()
    return found


def _mean_kernel(x: Array) -> float:
    """The mean of the kernel over pairs of different rows."""
    return float(_kernel_rows(x, x[:1])[1][0].mean())
