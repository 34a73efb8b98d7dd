"""Distances equal their closed forms, and shares their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import binomtest

from udit.errors import UserError
from udit.evaluation import metrics
from udit.evaluation.metrics import Balls, precision_recall


def exact_set(mean: np.ndarray, covariance: np.ndarray, count: int = 200) -> np.ndarray:
    """Points whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(0).standard_normal((count, len(mean)))
    x -= x.mean(0)
    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)))
    return mean + x @ whiten.T @ np.linalg.cholesky(covariance).T


def gaussian(count: int, width: int = 4, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)) + shift


def test_frechet_of_axis_aligned_gaussians() -> None:
    a = exact_set(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]))
    b = exact_set(np.array([3.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]), count=333)
    assert metrics.frechet_distance(a, b) == pytest.approx(9 + 4 + 1 + 0 + 4)  # |means|^2 + sum (sigma - sigma')^2


def test_frechet_of_gaussians_with_other_axes() -> None:
    rng = np.random.default_rng(3)
    one, two = (m @ m.T + np.eye(5) for m in rng.standard_normal((2, 5, 5)))
    mean = rng.standard_normal(5)
    wanted = mean @ mean + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert metrics.frechet_distance(exact_set(mean, one), exact_set(np.zeros(5), two)) == pytest.approx(wanted)


def test_frechet_with_singular_covariances() -> None:
    line = np.array([[0.0, 0.0, 5.0], [2.0, 0.0, 5.0], [4.0, 0.0, 5.0]])  # 3 points in 3 dimensions, variance 4 along x
    assert metrics.frechet_distance(line, line * [1, 1, 0]) == pytest.approx(25)
    assert metrics.frechet_distance(line, line * [3, 1, 1]) == pytest.approx((3 * 2 - 2) ** 2 + (6 - 2) ** 2)
    assert metrics.frechet_distance(line, line[:, [1, 0, 2]]) == pytest.approx(4 + 4 + 4 + 4)  # y is not x


def test_frechet_of_a_set_with_itself_is_zero_and_symmetric() -> None:
    a, b = gaussian(50, 40), gaussian(60, 40, seed=1)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_distance(a, a) >= 0
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a))


def test_interval_holds_the_value_and_narrows_with_more_samples() -> None:
    widths = []
    for count in (60, 960):
        a, b = gaussian(count, shift=1), gaussian(count, seed=1)
        low, high = metrics.bootstrap_interval(metrics.frechet_distance, a, b, 60, seed=0)
        assert low < metrics.frechet_distance(a, b) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_interval_covers_the_mean_of_fresh_sets() -> None:
    values, hits = [], 0
    intervals = []
    for seed in range(40):
        a, b = gaussian(80, 3, seed=2 * seed, shift=0.7), gaussian(80, 3, seed=2 * seed + 1)
        values.append(metrics.frechet_distance(a, b))
        intervals.append(metrics.bootstrap_interval(metrics.frechet_distance, a, b, 60, seed=0))
    hits = sum(low <= np.mean(values) <= high for low, high in intervals)
    assert hits >= 34  # 38 expected


def test_interval_depends_on_nothing_but_its_arguments() -> None:
    a, b = gaussian(40), gaussian(40, seed=1)
    first = metrics.bootstrap_interval(metrics.frechet_distance, a, b, 20, seed=0)
    assert metrics.bootstrap_interval(metrics.frechet_distance, a, b, 20, seed=0) == first
    assert metrics.bootstrap_interval(metrics.frechet_distance, a, b, 20, seed=1) != first


def test_interval_is_not_negative() -> None:
    a = gaussian(30)
    low, high = metrics.bootstrap_interval(metrics.frechet_distance, a, a, 30, seed=0)
    assert low == 0
    assert high >= 0


def test_subsets_compare_at_one_size() -> None:
    a, b = gaussian(1000), gaussian(1000, seed=1)
    assert metrics.mean_distance_of(1000, a, b, seed=0) == metrics.frechet_distance(a, b)
    assert metrics.mean_distance_of(40, a, b, seed=0) > 2 * metrics.frechet_distance(a, b)  # small sets seem farther


def test_subsets_of_sorted_samples_are_mixed() -> None:
    a = np.concatenate([gaussian(100, shift=-9), gaussian(100, shift=9)])
    assert metrics.mean_distance_of(50, a, a, seed=0) < metrics.frechet_distance(a[:50], a) / 10


def test_agreement_is_the_share_of_matches() -> None:
    assert metrics.class_agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75


def test_share_interval_is_wilsons() -> None:
    for right, count in ((970, 1000), (20, 20), (0, 20), (3, 7)):
        wanted = binomtest(right, count).proportion_ci(method="wilson")
        assert metrics.share_interval(right / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_nearest_distances_are_exact() -> None:
    rng = np.random.default_rng(0)
    queries, references = (rng.integers(0, 256, (n, 3, 5, 4), dtype=np.uint8) for n in (700, 600))
    references[599] = queries[699]
    found = metrics.nearest_distances(queries, references)
    for i in (0, 511, 512, 698):
        brute = ((queries[i].astype(int) - references.astype(int)) ** 2).sum((1, 2, 3)).min() ** 0.5
        assert found[i] == pytest.approx(brute, rel=1e-12)
    assert found[699] == 0


def test_copies_count_as_memorised_and_new_images_do_not() -> None:
    rng = np.random.default_rng(0)
    train, held_out, fresh = (rng.integers(0, 256, (n, 1, 3, 3), dtype=np.uint8) for n in (400, 400, 400))
    reference = metrics.nearest_distances(held_out, train)
    copied, expected = metrics.memorised_share(metrics.nearest_distances(train[:50], train), reference)
    assert copied == 1
    assert expected == pytest.approx(0.05, abs=0.005)
    assert metrics.memorised_share(metrics.nearest_distances(fresh, train), reference)[0] < 0.1
    mixed = np.concatenate([train[:100], fresh[:100]])
    assert 0.5 <= metrics.memorised_share(metrics.nearest_distances(mixed, train), reference)[0] < 0.56


def test_balls_of_few_features_reach_as_far_as_there_are_others_and_numbers_are_float64() -> None:
    few = np.array([[0.0], [3.0]])
    assert [list(x) for x in (Balls.around(few).radii, Balls.around(few).dense)] == [[3.0, 3.0]] * 2
    with pytest.raises(UserError, match="precision and recall of 9 samples and 2 reference images"):
        precision_recall(samples=np.zeros((9, 1)), reference=Balls.around(few))
    one, other = np.random.default_rng(0).normal(size=(2, 40, 3))
    half = one.astype(np.float32)
    assert precision_recall(samples=half, reference=other) == precision_recall(
        samples=half.astype(float), reference=other
    )
