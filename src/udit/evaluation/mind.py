"""MIND, the Monge Inception Distance (Berthet et al. 2026, arXiv 2605.06797): a sliced Wasserstein distance.

For n samples and n images of the reference with D features, and M random directions u of length 1:

    MIND = 3 D / (n M) sum_u sum_j (x_(j) - r_(j))^2,   x_(j), r_(j): projections on u, sorted

The factor 3 D is the paper's: that makes it about as large as a Fréchet distance. It needs no covariance, so that 1,000
to 5,000 samples do. The paper's features are Inception's; of others the number is the same thing in another space.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from udit import rng
from udit.errors import UserError
from udit.evaluation.frechet import Array

DIRECTIONS = 1000
"""M; the paper takes 100 to 1,000."""
AT_ONCE = 50
"""Directions whose projections are held at once."""
SCALE = 3
"""Times D: the factor in front."""


def mind(samples: Array, reference: Array, *, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """MIND of samples and reference.

    Args:
        samples: features [N, D].
        reference: features [M, D], M >= N, of which N random ones are taken.
        directions: number of projections.
        seed: of directions and of the images taken from the reference.

    Raises:
        UserError: the reference is smaller than the samples.
    """
    means = [float(((x - r) ** 2).mean()) * len(x.T) for x, r, _ in _slices(samples, reference, directions, seed)]
    return SCALE * samples.shape[1] * sum(means) / directions


def influences(samples: Array, reference: Array, *, directions: int = DIRECTIONS, seed: int = 0) -> tuple[float, Array]:
    """MIND, and by how much each sample moves it, [N], with mean 0.

    In one dimension the influence on the squared Wasserstein distance is the Kantorovich potential, whose derivative is
    2 (x - T(x)) with the optimal map T (del Barrio & Loubes 2019); here it is integrated from sample to sample.

    Args:
        samples: as for ``mind``, as are the others.
        reference: see there.
        directions: see there.
        seed: see there.

    Raises:
        UserError: the reference is smaller than the samples.
    """
    total, found = 0.0, np.zeros(len(samples))
    for x, r, order in _slices(samples, reference, directions, seed):
        total += float(((x - r) ** 2).mean()) * len(x.T)
        slope = x - r
        potential = np.zeros_like(x)
        np.cumsum((x[1:] - x[:-1]) * (slope[1:] + slope[:-1]), axis=0, out=potential[1:])
        potential -= potential.mean(0)
        for k in range(x.shape[1]):
            found[order[:, k]] += potential[:, k]
    factor = SCALE * samples.shape[1] / directions
    return factor * total, factor * found


def _slices(
    samples: Array, reference: Array, directions: int, seed: int
) -> Iterator[tuple[Array, Array, NDArray[np.int64]]]:
    """Sorted projections of samples and of as many of the reference, [N, k] each, and the order of the samples."""
    if len(reference) < len(samples):
        raise UserError(
            f"MIND of {len(samples)} samples needs as many reference images and there are {len(reference)}; give more "
            "of these or fewer samples"
        )
    taken = torch.randperm(len(reference), generator=rng.generator(seed, "mind reference"))[: len(samples)].numpy()
    kept = reference[np.sort(taken)]
    generator = rng.generator(seed, "mind directions")
    for start in range(0, directions, AT_ONCE):
        drawn = torch.randn(
            min(AT_ONCE, directions - start), samples.shape[1], generator=generator, dtype=torch.float64
        ).numpy()
        axes = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).T
        projected = samples @ axes
        order = projected.argsort(0)
        yield np.take_along_axis(projected, order, 0), np.sort(kept @ axes, 0), order
