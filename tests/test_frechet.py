"""The distance equals its closed form, and its interval covers the truth as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from udit.evaluation.frechet import MIN_SAMPLES, Distance, Statistics, distance, measure


def spd(g: np.random.Generator, width: int) -> np.ndarray:
    """A covariance with variances from 0.1 to 1 along random axes."""
    axes = np.linalg.qr(g.standard_normal((width, width)))[0]
    return (axes * np.exp(g.uniform(-2.3, 0, width))) @ axes.T


def exact(a: Statistics, b: Statistics) -> float:
    """By scipy's matrix root."""
    root = sqrtm(a.cov @ b.cov).real
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root))


def simulate(g: np.random.Generator, width: int, count: int, apart: float, tails: str) -> tuple[Distance, float]:
    """A generator about ``apart`` from a reference: what ``count`` of its samples say, and the truth."""
    reference = Statistics(g.standard_normal(width), spd(g, width))
    bend = np.eye(width) + apart * g.standard_normal((width, width)) / np.sqrt(width)
    shift = apart * g.standard_normal(width) * np.sqrt(np.diag(reference.cov))
    truth = Statistics(reference.mean + shift, bend @ reference.cov @ bend.T)
    noise = {
        "gauss": lambda: g.standard_normal((count, width)),
        "skew": lambda: (g.standard_gamma(2.0, (count, width)) - 2) / np.sqrt(2),
        "heavy": lambda: g.standard_t(8, (count, width)) / np.sqrt(8 / 6),
    }[tails]()
    samples = truth.mean + noise @ np.linalg.cholesky(truth.cov).T
    return measure(samples, reference), distance(truth, reference)


def coverage(
    seed: int, cases: int, widths: tuple[int, int], counts: tuple[int, int], aparts: tuple[float, float]
) -> float:
    """Share of random cases whose interval holds the truth."""
    g, hits = np.random.default_rng(seed), 0
    for i in range(cases):
        width = int(g.integers(*widths))
        found, truth = simulate(
            g,
            width,
            int(g.integers(*counts)),
            float(np.exp(g.uniform(*np.log(aparts)))),
            ("gauss", "skew", "heavy")[i % 3],
        )
        assert found.interval is not None
        hits += found.interval[0] <= truth <= found.interval[1]
    return hits / cases


def test_distance_is_scipys() -> None:
    g = np.random.default_rng(0)
    for width in (1, 3, 8):
        a, b = (Statistics(g.standard_normal(width), spd(g, width)) for _ in range(2))
        assert distance(a, b) == pytest.approx(exact(a, b), rel=1e-8)
        assert distance(a, a) == pytest.approx(0, abs=1e-12)


def test_statistics_are_numpys() -> None:
    x = np.random.default_rng(0).standard_normal((50, 4))
    found = Statistics.of(x.astype(np.float32))
    assert found.cov == pytest.approx(np.cov(x, rowvar=False), abs=1e-6)
    assert found.mean == pytest.approx(x.mean(0), abs=1e-6)
    assert found.count == 50


def test_interval_covers_the_truth_in_most_of_150_cases() -> None:
    """As many as the next test's share lets one expect, within three deviations of chance."""
    assert coverage(0, 150, widths=(2, 13), counts=(250, 600), aparts=(0.1, 1.0)) >= 0.90


@pytest.mark.slow
def test_interval_covers_the_truth_in_93_to_97_of_100_cases() -> None:
    """1,000 random pairs of distributions, Gaussian, skewed and heavy-tailed, 0.1 to 1 deviation apart."""
    assert 0.93 <= coverage(0, 1000, widths=(2, 13), counts=(250, 600), aparts=(0.1, 1.0)) <= 0.97


@pytest.mark.slow
def test_interval_covers_the_truth_at_the_judges_width() -> None:
    assert 0.93 <= coverage(1, 1000, widths=(32, 33), counts=(800, 1500), aparts=(0.1, 1.0)) <= 0.97


def test_interval_of_a_perfect_generator_holds_zero_and_errs_on_one_side_only() -> None:
    g = np.random.default_rng(2)
    found = [simulate(g, 8, 400, 0.0, "gauss")[0] for _ in range(300)]
    covered = np.mean([f.interval[0] <= 1e-9 for f in found if f.interval])
    assert 0.93 <= covered <= 1  # the upper end cannot miss at zero, and max(V1 - V2, V2) errs upwards
    assert np.mean([f.value for f in found]) > 0.02  # the plain distance never gets there
    assert abs(np.mean([f.value - f.bias for f in found if f.bias is not None])) < 0.002


def test_bias_is_what_fewer_samples_add() -> None:
    g = np.random.default_rng(3)
    found = [simulate(g, 6, 100, 0.1, "gauss") for _ in range(200)]
    plain = np.mean([f.value - truth for f, truth in found])
    assert plain == pytest.approx(np.mean([f.bias for f, _ in found if f.bias is not None]), rel=0.2)


def test_too_few_samples_give_a_value_and_no_interval() -> None:
    x = np.random.default_rng(0).standard_normal((MIN_SAMPLES * 5 - 1, 5))
    found = measure(x, Statistics(np.zeros(5), np.eye(5)))
    assert found.value > 0
    assert found.interval is None
    assert found.debiased is None
    assert measure(np.concatenate([x, x[:1]]), Statistics(np.zeros(5), np.eye(5))).interval is not None


def test_features_that_never_vary_change_nothing() -> None:
    x = np.random.default_rng(0).standard_normal((300, 3)) + 0.3
    reference = Statistics(np.zeros(3), np.eye(3))
    padded = measure(np.c_[x, np.full(300, 7.0)], Statistics(np.array([0, 0, 0, 7.0]), np.diag([1, 1, 1, 0.0])))
    plain = measure(x, reference)
    assert padded.value == pytest.approx(plain.value)
    assert padded.interval == pytest.approx(plain.interval, rel=1e-6)
