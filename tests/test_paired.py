"""The interval of a difference over the same seeds covers the truth, and is narrower than that of two sets of seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from udit.errors import UserError
from udit.evaluation import paired
from udit.evaluation.frechet import Array, Statistics, distance
from udit.evaluation.mind import influences, mind
from udit.evaluation.paired import Difference

WIDTH = 4
BEND_A, BEND_B = np.diag([1.0, 1.1, 0.9, 1.0]), np.diag([1.3, 1.1, 0.9, 0.8])
SHIFT_A, SHIFT_B = np.array([0.3, 0, 0, 0]), np.array([0.3, 0.2, 0, 0])
REAL = Statistics(np.zeros(WIDTH), np.eye(WIDTH))


def draw(g: np.random.Generator, count: int, width: int = WIDTH) -> tuple[Array, Array]:
    """Two generators' samples from the same noise, the second with a little of its own."""
    noise = g.standard_normal((count, width))
    wide = np.eye(width)
    bend_a, bend_b = wide.copy(), wide.copy()
    bend_a[:WIDTH, :WIDTH], bend_b[:WIDTH, :WIDTH] = BEND_A, BEND_B
    pad = (0, width - WIDTH)
    return noise @ bend_a + np.pad(SHIFT_A, pad), noise @ bend_b + np.pad(SHIFT_B, pad)


TRUTH = distance(Statistics(SHIFT_A, BEND_A @ BEND_A), REAL) - distance(Statistics(SHIFT_B, BEND_B @ BEND_B), REAL)


def shares(measure: Callable[[Array, Array], Difference], truth: float, rounds: int, count: int) -> tuple[float, float]:
    """Of how many rounds the interval holds the truth, and its mean width."""
    g = np.random.default_rng(0)
    found = [measure(*draw(g, count)) for _ in range(rounds)]
    return (
        float(np.mean([f.interval[0] <= truth <= f.interval[1] for f in found])),
        float(np.mean([f.interval[1] - f.interval[0] for f in found])),
    )


@pytest.mark.slow
def test_interval_of_a_frechet_difference_covers_the_truth() -> None:
    """95 % of 150 rounds within three deviations of chance; the debiased difference is right on average."""
    covered, paired_width = shares(lambda a, b: paired.frechet_difference(a, b, REAL), TRUTH, 150, 200)
    assert covered >= 0.90
    g = np.random.default_rng(1)
    unpaired = [paired.frechet_difference(draw(g, 200)[0], draw(g, 200)[1], REAL) for _ in range(10)]
    assert paired_width < 0.7 * np.mean([f.interval[1] - f.interval[0] for f in unpaired])
    values = [paired.frechet_difference(*draw(g, 60), REAL).value for _ in range(300)]
    assert np.mean(values) == pytest.approx(TRUTH, abs=3 * np.std(values) / 300**0.5)


def test_one_generator_of_two_sets_of_seeds_is_not_told_apart() -> None:
    g = np.random.default_rng(2)
    told = [paired.frechet_difference(draw(g, 200)[0], draw(g, 200)[0], REAL).separate for _ in range(120)]
    assert np.mean(told) <= 0.10


def test_few_samples_for_many_features_are_compared_by_a_jackknife() -> None:
    g, width = np.random.default_rng(3), 30
    real = Statistics(np.zeros(width), np.eye(width))
    found = [paired.frechet_difference(*draw(g, 100, width), real) for _ in range(60)]
    assert {f.method for f in found} == {"jackknife"}
    middle = np.mean([f.value for f in found])  # of the biased distances of 100 samples
    assert np.mean([f.interval[0] <= middle <= f.interval[1] for f in found]) >= 0.88
    a, b = draw(g, 100, width)
    assert found[0].a != found[0].b
    again = paired.frechet_difference(a, b, real)
    assert again.a == pytest.approx(distance(Statistics.of(a), real), rel=1e-9)
    assert again.value == pytest.approx(again.a - again.b)
    few = paired.frechet_difference(a[:40], b[:40], Statistics(np.zeros(width), np.eye(width)))
    assert few.b == pytest.approx(distance(Statistics.of(b[:40]), real), rel=1e-6)


def test_interval_of_a_kernel_difference_covers_the_truth() -> None:
    g = np.random.default_rng(4)
    reference = g.standard_normal((300, WIDTH))
    truth = paired.kernel_difference(*draw(g, 2500), reference).value
    covered, _ = shares(lambda a, b: paired.kernel_difference(a, b, reference), truth, 60, 100)
    assert covered >= 0.88
    a, b = draw(g, 50)
    found = paired.kernel_difference(a, b, reference)
    assert found.a == pytest.approx(unbiased_mmd(a, reference), rel=1e-9)
    assert found.value == pytest.approx(found.a - found.b)


def unbiased_mmd(x: Array, y: Array) -> float:
    """As Gretton et al. write it."""

    def kernel(u: Array, v: Array) -> Array:
        return (u @ v.T / u.shape[1] + 1) ** 3

    def off(k: Array) -> float:
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    return off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean()


def test_mind_of_a_shift_is_three_times_its_square() -> None:
    """Along a random direction a shift by s moves everything by u . s, and the mean of (u . s)^2 is s^2 / D."""
    g = np.random.default_rng(5)
    x, shift = g.standard_normal((100, 8)), np.full(8, 0.5)
    # over 4,000 directions: (u . s)^2 deviates by 1.18 of its mean (a Beta law), and their mean by 0.019 of it
    assert mind(x + shift, x, directions=4000) == pytest.approx(3 * (shift**2).sum(), rel=0.06)
    assert mind(x, x) == 0
    flat = x[:, :1]
    assert mind(flat + 2, flat) == pytest.approx(3 * 4)
    assert mind(x, np.concatenate([x, x + 1]), seed=1) == mind(x, np.concatenate([x, x + 1]), seed=1)
    with pytest.raises(UserError, match="MIND of 100 samples needs as many reference images and there are 99"):
        mind(x, x[:99])


def test_influence_on_mind_is_what_a_sample_put_in_the_place_of_another_moves_it_by() -> None:
    """Optimal transport is linear in so little mass, with a slope to either side; the potential is their mean."""
    g = np.random.default_rng(6)
    x, r = g.standard_normal((30, 2)), 1.5 * g.standard_normal((30, 2)) + 0.4
    value, found = influences(x, r, directions=20)
    assert value == pytest.approx(mind(x, r, directions=20))
    assert found.mean() == pytest.approx(0, abs=1e-12)
    for k, other in ((0, 1), (5, 20), (29, 3)):
        there, back = x.copy(), x.copy()
        there[other], back[k] = x[k], x[other]
        moved = (mind(there, r, directions=20) - mind(back, r, directions=20)) / 2
        assert 30 * moved == pytest.approx(found[k] - found[other], rel=1e-9)


@pytest.mark.slow
def test_interval_of_a_mind_difference_covers_the_expected_one() -> None:
    g = np.random.default_rng(7)
    reference = g.standard_normal((150, WIDTH))
    found = [paired.mind_difference(*draw(g, 150), reference) for _ in range(60)]
    middle = np.mean([f.value for f in found])
    assert np.mean([f.interval[0] <= middle <= f.interval[1] for f in found]) >= 0.88


def test_agreement_is_compared_by_the_images_on_which_both_differ() -> None:
    a = np.arange(100) < 80
    b = np.arange(100) < 60
    found = paired.agreement_difference(a, b)
    assert found.value == pytest.approx(0.2)
    assert found.separate
    assert not paired.agreement_difference(a, a).separate
    assert paired.agreement_difference(a, np.roll(a, 20)).interval[0] < 0


def test_sets_that_are_no_pairs_are_refused() -> None:
    x = np.zeros((50, 2))
    with pytest.raises(UserError, match="needed are at least 40 seeds"):
        paired.frechet_difference(x, x[:49], REAL)
    with pytest.raises(UserError, match="needed are at least 40 seeds"):
        paired.kernel_difference(x[:39], x[:39], x)
    with pytest.raises(UserError, match="these differ in first_seed"):
        paired.require_same_seeds({"first_seed": 1, "n": 2}, {"first_seed": 2, "n": 2}, ("first_seed", "n"))
