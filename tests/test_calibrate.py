"""The calls that a cache refreshes have the least estimated error, as an exhaustive search finds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

import udit
from conftest import TINY, perturb
from udit.diffusion.cache import Memory
from udit.diffusion.calibrate import Drift, watch
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import SeededNoise, sample


def drift_of(deep: np.ndarray, times: np.ndarray, slopes: np.ndarray | None = None) -> Drift:
    """Of outputs [n, D]; nothing is guided."""
    n = len(deep)
    return Drift(times, deep @ deep.T, np.ones(n) if slopes is None else slopes, np.zeros((n, n)))


def estimated_error(
    deep: np.ndarray, times: np.ndarray, slopes: np.ndarray, refresh: tuple[int, ...], forecast: bool
) -> float:
    """The sum of e_j, by the cache's own memory."""
    memory, total, strides = Memory(forecast), 0.0, np.abs(np.gradient(times))
    for j in range(len(deep)):
        t, row = torch.tensor([times[j]]), torch.from_numpy(deep[j : j + 1])
        if j in refresh:
            memory.keep(t, row)
        else:
            kept = memory.recall(t)
            assert kept is not None
            total += strides[j] * (slopes[j] ** 0.5) * float((kept - row).norm())
    return total


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_plan_is_the_best_of_all(count: int) -> None:
    random = np.random.default_rng(count)
    deep, slopes = random.normal(size=(7, 4)).cumsum(axis=0), random.uniform(0.5, 2, 7)
    times = np.array([1.0, 0.9, 0.9, 0.6, 0.4, 0.4, 0.1])  # Heun's samplers ask twice at one time
    plan = drift_of(deep, times, slopes).plan(count)
    found = estimated_error(deep, times, slopes, plan.refresh, plan.forecast)
    every = [
        estimated_error(deep, times, slopes, (0, *rest), forecast)
        for rest in combinations(range(1, 7), count - 1)
        for forecast in (False, True)
    ]
    assert len(plan.refresh) == count
    assert found == pytest.approx(min(every), abs=1e-9)


def test_steps_are_kept_and_lines_are_forecast() -> None:
    times = np.linspace(1, 0.1, 9)
    stairs = np.repeat(np.array([[1.0, 0], [0, 3], [5, 5]]), 3, axis=0)
    plan = drift_of(stairs, times).plan(3)
    assert (plan.refresh, plan.forecast) == ((0, 3, 6), False)
    line = np.arange(9.0)[:, None] * np.array([[1.0, -2]]) + 1
    plan = drift_of(line, times).plan(2)
    assert (plan.refresh, plan.forecast) == ((0, 1), True)


def test_drift_of_guidance_counts_where_guidance_is_kept() -> None:
    differences = np.repeat(np.array([[1.0], [4], [9]]), 2, axis=0)
    drift = Drift(np.linspace(1, 0.5, 6), np.ones((6, 6)), np.ones(6), differences @ differences.T)
    assert drift.plan(3, guidance=True).refresh == (0, 2, 4)
    assert drift.plan(3, guidance=True).guidance
    assert not drift.plan(3).guidance


def test_a_run_is_recorded_without_being_changed() -> None:
    network = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False})).eval()
    guided = Guided(Denoiser(network, Flow(), "flow", null_label=5, num_classes=5), 3.0, interval=(0.0, 0.85))
    noise, y = SeededNoise([0, 1], (1, 8, 8)), torch.tensor([1, 4])
    drift = watch(guided, noise(0), sampler="flow-euler", steps=5, y=y)
    assert drift.times.tolist() == pytest.approx([1000, 800, 600, 400, 200])
    assert (drift.slopes[1:] > 0).all()
    assert (np.diag(drift.guidance) > 0).tolist() == [False, True, True, True, True]
    with torch.no_grad():
        first, second = (
            network.deep(network.enter(x, cond)[0], cond).flatten().double()
            for x, t in (
                (noise(0), 1.0),
                (next(iter(sample(guided, noise(0), sampler="flow-euler", steps=5, y=y))).x, 0.8),
            )
            for cond in [network.condition(torch.full((2,), 1000 * t), y)]
        )
    expected = torch.stack([first @ first, first @ second, second @ second]).numpy()
    np.testing.assert_allclose([drift.deep[0, 0], drift.deep[0, 1], drift.deep[1, 1]], expected, rtol=1e-4)
