"""Our two exact samplers reach Gaussian data as theory says, and noise depends on the image's seed alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gaussian import Gaussian
from udit import rng
from udit.diffusion.ddpm import DDIM, DDPM, Ancestral
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import SeededNoise, Step, make_sampler, sample
from udit.diffusion.solvers import Solver
from udit.errors import UserError

SCHEDULE = DDPM.linear(1000)
DATA = Gaussian(mean=0.3, std=0.5)
SHAPE = (64, 1, 8, 8)


def noise_of(seed: int) -> Callable[[int], Tensor]:
    return lambda k: rng.normal(SHAPE, seed, "test", k).double()


def last(denoiser: Denoiser | Guided, x: Tensor, **options: object) -> Step:
    *_, step = sample(denoiser, x, **options)  # type: ignore[arg-type]
    return step


# ---- truth -----------------------------------------------------------------------------------------------------------


def test_ddim_follows_the_probability_flow_to_first_order() -> None:
    x = noise_of(0)(0)
    exact = DATA.flow_map(x, math.sqrt(SCHEDULE.alpha_bar[-1]), math.sqrt(1 - SCHEDULE.alpha_bar[-1]))
    errors = [
        (last(DATA.denoiser(SCHEDULE), x, sampler="ddim", steps=n).x - exact).abs().max().item()
        for n in (100, 250, 1000)
    ]
    assert errors[0] / errors[1] == pytest.approx(2.5, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)
    assert errors[2] < 0.006  # 5 % of a standard deviation at 100 steps, for pixels four deviations out


def predicted(sampler: DDIM | Ancestral, fraction: float | None, steps: int) -> tuple[float, float]:
    """Mean and deviation of the samples, carried step by step: each step is linear in x, plus independent noise."""
    s = SCHEDULE.respaced(steps)
    mean, variance = 0.0, 1.0
    for i in reversed(range(steps)):
        bar, prev = s.alpha_bar[i], s.alpha_bar_prev[i]
        a, spread = math.sqrt(bar), bar * DATA.std**2 + 1 - bar
        slope = a * DATA.std**2 / spread  # of x0 in x
        offset = DATA.mean * (1 - a * slope)
        if isinstance(sampler, DDIM):
            sigma = sampler.eta * math.sqrt((1 - prev) / (1 - bar) * (1 - bar / prev))
            to_eps = math.sqrt(1 - prev - sigma**2) / math.sqrt(1 - bar)
            of_x0, of_x = math.sqrt(prev) - to_eps * a, to_eps
        else:
            of_x0, of_x = (float(table[i]) for table in s.posterior_coefficients)
            smallest, largest = s.posterior_log_variance[i], math.log(s.betas[i])
            share = 1.0 if fraction is None else (1 + fraction) / 2
            sigma = math.exp(0.5 * (share * largest + (1 - share) * smallest))
        gain = of_x0 * slope + of_x
        mean = gain * mean + of_x0 * offset
        variance = gain**2 * variance + (sigma**2 if i else 0)
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    ("sampler", "fraction", "steps", "tolerance"),
    [
        (Ancestral(), -1.0, 1000, 0.01),  # the smallest variance is right for known x0: a little too narrow
        (Ancestral(), 1.0, 250, 0.04),
        (Ancestral(), None, 1000, 0.01),  # without a learned variance: the large one
        (Ancestral(), None, 20, 0.5),  # few steps miss the data, and tell the variances apart
        (Ancestral(), 0.3, 100, 0.10),
        (DDIM(0.5), None, 250, 0.04),
        (DDIM(1.0), None, 250, 0.04),
    ],
    ids=lambda v: str(v),
)
def test_samples_have_the_mean_and_deviation_of_the_data(
    sampler: DDIM | Ancestral, fraction: float | None, steps: int, tolerance: float
) -> None:
    x = last(
        DATA.denoiser(SCHEDULE, variance=fraction), noise_of(1)(0), sampler=sampler, steps=steps, noise=noise_of(1)
    ).x
    mean, std = predicted(sampler, fraction, steps)
    n = x.numel()
    assert x.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert x.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))
    assert mean == pytest.approx(DATA.mean, abs=tolerance * DATA.std)
    assert std == pytest.approx(DATA.std, rel=tolerance)


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow", "gvp"])
def test_what_the_network_predicts_does_not_matter(target: str) -> None:
    x = noise_of(2)(0)
    expected = last(DATA.denoiser(SCHEDULE), x, sampler="ddim", steps=20).x
    torch.testing.assert_close(last(DATA.denoiser(SCHEDULE, target), x, sampler="ddim", steps=20).x, expected)


def test_ddim_with_eta_one_is_the_ancestral_step_with_the_smallest_variance() -> None:
    x, noise = noise_of(3)(0), noise_of(3)
    ancestral = last(DATA.denoiser(SCHEDULE, variance=-1.0), x, sampler="ddpm", steps=50, noise=noise).x
    ddim = last(DATA.denoiser(SCHEDULE), x, sampler=DDIM(1.0), steps=50, noise=noise).x
    torch.testing.assert_close(ddim, ancestral, atol=1e-9, rtol=1e-9)


# ---- steps and noise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_every_step_is_yielded_with_a_preview(name: str) -> None:
    steps = list(sample(DATA.denoiser(SCHEDULE), noise_of(0)(0), sampler=name, steps=7, noise=noise_of(0)))
    assert [(step.index, step.total) for step in steps] == [(k, 7) for k in range(1, 8)]
    assert all(step.x.shape == step.x0.shape == SHAPE for step in steps)
    torch.testing.assert_close(steps[-1].x, steps[-1].x0)
    previews = [(step.x0 - steps[-1].x).abs().mean().item() for step in steps]
    assert previews[-2] < previews[0]


@pytest.mark.parametrize(
    ("sampler", "expected"), [(Ancestral(), [1, 2, 3, 4]), (DDIM(0.3), [1, 2, 3, 4]), (DDIM(), [])]
)
def test_noise_is_drawn_once_a_step_but_not_at_the_last(sampler: Ancestral | DDIM, expected: list[int]) -> None:
    drawn = []

    def noise(k: int) -> Tensor:
        drawn.append(k)
        return torch.zeros(SHAPE)

    last(DATA.denoiser(SCHEDULE), noise_of(0)(0), sampler=sampler, steps=5, noise=noise)
    assert drawn == expected


def test_clipping_bounds_every_guess() -> None:
    wide = Gaussian(mean=0.5, std=2.0)
    x = noise_of(0)(0)
    for sampler in (Ancestral(clip=True), DDIM(clip=True)):
        clipped = list(sample(wide.denoiser(SCHEDULE), x, sampler=sampler, steps=10, noise=noise_of(0)))
        assert all(step.x0.abs().max() <= 1 for step in clipped)
        assert clipped[-1].x.abs().max() <= 1
    assert last(wide.denoiser(SCHEDULE), x, sampler=DDIM(), steps=10).x.abs().max() > 2


def test_respacing_strings_choose_the_steps() -> None:
    told = []

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        told.append(int(t[0]))
        return torch.zeros_like(x)

    last(Denoiser(backbone, SCHEDULE), torch.zeros(1, 1, 2, 2), sampler="ddim", steps="ddim25")
    assert told == list(range(960, -1, -40))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_image_of_a_seed_is_the_same_in_any_batch(sampler: str) -> None:
    """Bit-identical for the noise; the network's batch differs, so the rest is equal up to rounding."""

    def images(seeds: list[int]) -> Tensor:
        noise = SeededNoise(seeds, (2, 4, 4))
        return last(DATA.denoiser(SCHEDULE), noise(0), sampler=make_sampler(sampler), steps=5, noise=noise).x

    together = images([10, 11, 12, 13])
    for i in range(4):
        torch.testing.assert_close(images([10 + i])[0], together[i])
        assert torch.equal(SeededNoise([10 + i], (2, 4, 4))(3)[0], SeededNoise([10, 11, 12, 13], (2, 4, 4))(3)[i])
    torch.testing.assert_close(images([13, 10]), together[[3, 0]])
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_seeded_noise_is_a_function_of_seed_and_step() -> None:
    noise = SeededNoise([3, 4], (1, 2, 2))
    assert noise(0).shape == (2, 1, 2, 2)
    assert torch.equal(noise(5), noise(5))
    assert torch.equal(noise(5)[1], rng.normal((1, 2, 2), 4, "sample", 5))
    assert not torch.equal(noise(0), noise(1))


def test_sampling_builds_no_graph_and_leaves_the_global_generator_alone() -> None:
    weight = torch.ones((), requires_grad=True)
    denoiser = Denoiser(lambda x, t, y=None: weight * x, SCHEDULE)
    before = torch.get_rng_state()
    step = last(denoiser, torch.randn(1, 1, 2, 2, generator=torch.Generator()), sampler="ddim", steps=3)
    assert not step.x.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_have_no_gradients_in_any_thread_and_the_code_between_them_has() -> None:
    """Also where the samples are dropped before the last step."""
    weight = torch.ones((), requires_grad=True)
    denoiser = Denoiser(lambda x, t, y=None: weight * x, DDPM.linear(50))
    steps = sample(denoiser, torch.randn(2, 1, 4, 4), steps=5)
    found = [next(steps)]
    assert torch.is_grad_enabled()
    other = threading.Thread(target=lambda: found.append(next(steps)))
    other.start()
    other.join()
    found.append(next(steps))
    assert [step.x.requires_grad or step.x0.requires_grad for step in found] == [False] * 3
    steps.close()  # type: ignore[attr-defined]
    assert torch.is_grad_enabled()


def test_labels_reach_the_network() -> None:
    told = []

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        told.append(y)
        return torch.zeros_like(x)

    y = torch.tensor([2])
    last(Denoiser(backbone, SCHEDULE, null_label=3, num_classes=3), torch.zeros(1, 1, 2, 2), steps=2, y=y)
    assert all(label is y for label in told)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "options", "said"),
    [
        (SCHEDULE, {"sampler": "dimm"}, "no sampler 'dimm'; did you mean 'ddim'?"),
        (SCHEDULE, {"sampler": "flow-eular"}, "did you mean 'flow-euler'?"),
        (SCHEDULE, {"sampler": "flow-euler"}, "flow-euler does not fit a model that was trained with DDPM; use ddim"),
        (SCHEDULE, {"sampler": "flow-heun"}, "flow-heun does not fit a model that was trained with DDPM; use ddim"),
        (Flow(), {"sampler": "ddim"}, "ddim does not fit a model that was trained with flow matching; use flow-euler"),
        (Flow(), {"sampler": "ddpm"}, "ddpm does not fit a model that was trained with flow matching; use flow-euler"),
        (SCHEDULE, {"sampler": "ddim", "steps": 1001}, "cannot give 1001"),
        (SCHEDULE, {"sampler": "ddim", "steps": 0}, "give a count"),
        (SCHEDULE, {"sampler": "dpmpp", "steps": "ddim50"}, "takes a count of at least 1"),
        (SCHEDULE, {"sampler": "unipc", "steps": 0}, "takes a count of at least 1"),
        (SCHEDULE, {"sampler": "dpmpp", "steps": 1001}, "the schedule has 1000"),
        (SCHEDULE, {"sampler": "ddpm", "steps": 5}, "step 1 draws fresh noise; pass noise="),
        (SCHEDULE, {"sampler": DDIM(0.5), "steps": 5}, "step 1 draws fresh noise; pass noise="),
        (SCHEDULE, {"y": torch.tensor([0])}, "unconditional model"),
    ],
)
def test_misuse_is_a_one_line_error(schedule: DDPM | Flow, options: dict, said: str, one_line: Callable) -> None:
    target = "eps" if isinstance(schedule, DDPM) else "flow"
    with pytest.raises(UserError) as caught:
        last(DATA.denoiser(schedule, target), torch.zeros(1, 1, 2, 2), **options)
    assert said in one_line(caught.value)


def test_names_make_samplers() -> None:
    assert make_sampler("ddpm", clip=True) == Ancestral(clip=True)
    assert make_sampler("ddim", eta=0.5, clip=True) == DDIM(0.5, clip=True)
    assert make_sampler("unipc") == Solver("unipc")


def test_guided_denoiser_is_respaced_inside() -> None:
    guided = Guided(Denoiser(lambda x, t, y=None: x, SCHEDULE, null_label=0, num_classes=1), 2.0)
    assert len(guided.respaced(10).schedule) == 10
    assert guided.respaced(10).guidance == 2.0
    np.testing.assert_array_equal(guided.respaced(10).schedule.timesteps, SCHEDULE.respaced(10).timesteps)
