"""Distances between sets of images, precision and recall, agreement and memorisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udit import rng
from udit.data.sources import Labels, Pixels
from udit.errors import UserError
from udit.evaluation.frechet import Array, Interval, Statistics, distance
from udit.evaluation.image_set import ImageSet

BLOCK = 1024
"""Rows of a distance matrix that are held at once."""

NEIGHBORS = 3
"""k of improved precision and recall."""
DENSITY_NEIGHBORS = 5
"""k of density and coverage."""
NEAR_QUANTILE = 0.05
"""Share of held-out real images that count as near to the training set, by definition."""


def frechet_distance(a: Array, b: Array) -> float:
    """``frechet.distance`` of Gaussians fitted to two sets, with unbiased covariances.

    Args:
        a: features [N, D], N >= 2.
        b: features [M, D], M >= 2.

    Returns:
        At least 0. Biased upwards by roughly c / N + c / M, so compare only distances at the same N and M.
    """
    return distance(Statistics.of(a), Statistics.of(b))


@dataclass(frozen=True)
class PrecisionRecall:
    """How realistic samples are, and how much of the reference they cover; in 0..1, but for ``density``."""

    precision: float
    recall: float
    density: float
    """In how many of the reference's balls a sample lies, over k: about 1 for real images, more for samples in its
    dense parts. One outlier of the reference, whose ball is large, weighs little in it."""
    coverage: float
    """Share of the reference in whose ball there is a sample."""


@dataclass(frozen=True)
class Balls:
    """Balls around each of some features [M, D], which just reach near other ones of them.

    Attributes:
        features: their centres.
        radii: distance of each to its k-th nearest other one, [M].
        dense: the same with ``DENSITY_NEIGHBORS`` in the place of k, or as many as there are.
    """

    features: Array
    radii: Array
    dense: Array

    @classmethod
    def around(
        cls, features: Array, neighbors: int = NEIGHBORS, on_rows: Callable[[int], object] = lambda count: None
    ) -> Balls:
        """The balls of k = ``neighbors``, or of as many as there are.

        Args:
            features: [M, D].
            neighbors: k.
            on_rows: called with how many more are done.
        """
        ranks = [min(k, len(features) - 1) for k in (neighbors, DENSITY_NEIGHBORS)]
        found = np.empty((2, len(features)))
        for start in range(0, len(features), BLOCK):
            rows = _apart(features[start : start + BLOCK], features)
            nearest = rows.topk(max(ranks) + 1, dim=1, largest=False).values  # itself first
            found[:, start : start + BLOCK] = nearest[:, ranks].T.numpy()
            on_rows(len(rows))
        return cls(features, *found)


def _apart(a: Array, b: Array) -> Tensor:
    """Distances of [N, D] to [M, D], float64 [N, M]; by no product of matrices, in which near ones would cancel."""
    rows, columns = (torch.from_numpy(x).double() for x in (a, b))
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def precision_recall(*, samples: Array, reference: Array | Balls, neighbors: int = NEIGHBORS) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set's manifold is the union of balls around its members that just reach their k-th nearest other member. Precision
    is the share of samples within the reference's manifold, recall the share of the reference within the samples'.
    Density and coverage are of the reference's balls with ``DENSITY_NEIGHBORS`` in the place of k, or of as many as
    there are. Keywords only: swapped sets would swap the results.

    Args:
        samples: features [N, D], N > k.
        reference: features [M, D], M > k, or their balls of the same k.
        neighbors: k.

    Raises:
        UserError: too few of either.
    """
    count = len(reference.features if isinstance(reference, Balls) else reference)
    if min(len(samples), count) <= neighbors:
        raise UserError(
            f"precision and recall of {len(samples)} samples and {count} reference images need more than "
            f"{neighbors} of both; give more"
        )
    real = reference if isinstance(reference, Balls) else Balls.around(reference, neighbors)
    own = Balls.around(samples, neighbors)
    realistic, balls = np.zeros(len(samples), bool), 0
    recalled, covered = np.zeros(count, bool), np.zeros(count, bool)
    for start in range(0, len(samples), BLOCK):
        rows = slice(start, start + BLOCK)
        apart = _apart(samples[rows], real.features).numpy()
        realistic[rows] = (apart <= real.radii).any(1)
        recalled |= (apart <= own.radii[rows, None]).any(0)
        within = apart <= real.dense
        balls += int(within.sum())
        covered |= within.any(0)
    density = balls / (min(DENSITY_NEIGHBORS, count - 1) * len(samples))
    return PrecisionRecall(float(realistic.mean()), float(recalled.mean()), density, float(covered.mean()))


def bootstrap_interval(
    function: Callable[[Array, Array], float], a: Array, b: Array, resamples: int, seed: int
) -> Interval:
    """Basic bootstrap 95 % interval of ``function(a, b)``, both sets resampled (Davison & Hinkley 1997, Sec. 5.2).

    Resampling biases a Fréchet distance upwards, as sampling already did. So resamples are centred on their own mean m:
    with v the value and q the quantiles, the interval is [v + m - q(97.5 %), v + m - q(2.5 %)], clipped at 0. It
    bounds how far v lies from the mean value over sets of these sizes, not from the distance with unlimited samples.
    """
    value = function(a, b)
    values = []
    for i in range(resamples):
        generator = rng.generator(seed, "bootstrap", i)
        rows_a, rows_b = (torch.randint(len(s), (len(s),), generator=generator).numpy() for s in (a, b))
        values.append(function(a[rows_a], b[rows_b]))
    low, high = np.quantile(values, [0.025, 0.975]) - np.mean(values)
    return max(0.0, float(value - high)), max(0.0, float(value - low))


def mean_distance_of(count: int, a: Array, b: Array, seed: int, draws: int = 20) -> float:
    """Mean Fréchet distance to ``b`` of random subsets of ``a`` of one size; of ``a`` itself if it has that size."""
    if count >= len(a):
        return frechet_distance(a, b)
    subsets = (torch.randperm(len(a), generator=rng.generator(seed, "subset", i))[:count].numpy() for i in range(draws))
    return float(np.mean([frechet_distance(a[rows], b) for rows in subsets]))


def class_agreement(predicted: Labels, wanted: Labels) -> float:
    """Share of samples, in 0..1, whose predicted class is the requested one."""
    return float(np.mean(predicted == wanted))


def share_interval(share: float, count: int) -> Interval:
    """Wilson's 95 % interval of a share among ``count`` (Wilson 1927), which is valid at 0 and 1 too."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = np.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2))) / (1 + z2 / count)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def nearest_distances(queries: Pixels, references: Pixels) -> Array:
    """L2 distance in pixel values from each of queries [N, ...] to the closest of references [M, ...]; [N]."""
    nearest = np.full(len(queries), np.inf)
    flat_queries, flat_references = queries.reshape(len(queries), -1), references.reshape(len(references), -1)
    for j in range(0, len(references), 512):
        right = flat_references[j : j + 512].astype(np.float64)  # whole numbers: exact, a copy is at 0
        right_squared = (right**2).sum(1)
        for i in range(0, len(queries), 512):
            left = flat_queries[i : i + 512].astype(np.float64)
            squared = (left**2).sum(1)[:, None] + right_squared - 2 * left @ right.T
            nearest[i : i + 512] = np.minimum(nearest[i : i + 512], squared.min(1))
    distances: Array = np.sqrt(nearest)
    return distances


def lower_to_nearest(nearest: Array, images: ImageSet, others: Pixels) -> None:
    """Lowers ``nearest`` [N], in place, to each image's distance to the closest of ``others`` where that is less."""
    done = 0
    for chunk in images.chunks():
        own = nearest[done : done + len(chunk)]
        np.minimum(own, nearest_distances(chunk, others), out=own)
        done += len(chunk)


def memorised_share(samples: Array, heldout: Array) -> tuple[float, float]:
    """How many samples are suspiciously near to the training set.

    An image is near if it is no farther from its closest training image than the closest 5 % of held-out real images
    are from theirs.

    Args:
        samples: distance of each sample to its closest training image, [N].
        heldout: the same for real images that were not trained on, [M].

    Returns:
        Share of near samples, and the share of near held-out images: what a perfect generator would get (about 5 %).
    """
    limit = np.quantile(heldout, NEAR_QUANTILE, method="lower")
    return float(np.mean(samples <= limit)), float(np.mean(heldout <= limit))
