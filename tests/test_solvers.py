"""Deterministic samplers, EDM's and diffusers' behind our interface, land where the ODE of Gaussian data does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gaussian import Gaussian
from udit.diffusion.config import DDPMConfig, EDMConfig, FlowConfig
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.edm import EDM
from udit.diffusion.flow import Flow
from udit.diffusion.sample import SeededNoise, Step, sample
from udit.diffusion.samplers import SAMPLERS
from udit.diffusion.solvers import Solver
from udit.diffusion.targets import encode
from udit.errors import UserError

DATA = Gaussian(mean=0.3, std=0.5)
SCHEDULES = {"ddpm": DDPM.linear(1000), "flow": Flow(), "gvp": Flow("gvp"), "edm": EDM()}
TARGETS = {"ddpm": "eps", "flow": "flow", "gvp": "gvp", "edm": "x0"}
X_T = torch.randn(64, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

CASES = [
    ("ddpm", "dpmpp", 160, 5, 2e-3),
    ("ddpm", "unipc", 160, 5, 3e-3),  # its last jump starts at step 1000 / 160, which bounds it
    ("flow", "flow-euler", 160, 3.5, 2e-2),  # first order
    ("flow", "flow-heun", 160, 10, 3e-4),
    ("flow", "dpmpp", 160, 7, 3e-3),
    ("flow", "unipc", 160, 12, 4e-4),
    ("gvp", "flow-euler", 160, 3.5, 6e-3),
    ("gvp", "flow-heun", 160, 10, 3e-4),
    ("gvp", "dpmpp", 160, 7, 3e-3),
    ("gvp", "unipc", 160, 12, 4e-4),
    ("edm", "edm-euler", 160, 3.5, 4e-2),  # first order
    ("edm", "edm-heun", 160, 16, 5e-3),
]
"""Schedule, sampler, steps, how many times better than a quarter of the steps, largest error of any pixel."""


def walk(schedule: str, name: str, steps: int, target: str | None = None) -> list[Step]:
    kind = SCHEDULES[schedule]
    denoiser = DATA.denoiser(kind, target or TARGETS[schedule])  # type: ignore[arg-type]
    return list(sample(denoiser, X_T, sampler=name, steps=steps))


def exact(schedule: str) -> Tensor:
    if schedule in ("flow", "gvp"):
        return DATA.flow_map(X_T, 0.0, 1.0)
    if schedule == "edm":
        return DATA.flow_map(80 * X_T, 1.0, 80.0)
    bar = SCHEDULES["ddpm"].alpha_bar[-1]  # type: ignore[union-attr]
    return DATA.flow_map(X_T, math.sqrt(bar), math.sqrt(1 - bar))


def test_every_solver_is_tried() -> None:
    """Of the probability flow: ``ddpm`` and ``flow-sde`` draw noise, and ddim's eta may."""
    others = {"ddpm", "ddim", "flow-sde", "flow-average", "flow-consistency"}
    assert {name for _, name, *_ in CASES} == set(SAMPLERS) - others
    tried = {(schedule, name) for schedule, name, *_ in CASES}
    kinds = {"ddpm": DDPMConfig, "flow": FlowConfig, "gvp": FlowConfig, "edm": EDMConfig}
    assert tried == {(kind, n) for kind, config in kinds.items() for n in config.samplers() if n not in others}


@pytest.mark.parametrize(("schedule", "name", "steps", "gain", "limit"), CASES)
def test_solver_converges_to_the_probability_flow(
    schedule: str, name: str, steps: int, gain: float, limit: float
) -> None:
    truth = exact(schedule)
    few, many = ((walk(schedule, name, n)[-1].x - truth).abs().max().item() for n in (steps // 4, steps))
    assert many < limit
    assert few / many > gain


@pytest.mark.parametrize(
    ("schedule", "name", "limit"),
    # EDM's first step alone goes down from 80 to 53, where others begin at 1
    [(s, n, 0.1 if s == "edm" else 0.06 if "euler" in n else 0.03) for s, n, *_ in CASES],
)
def test_thirty_steps_have_the_mean_and_deviation_of_the_data(schedule: str, name: str, limit: float) -> None:
    x, truth = walk(schedule, name, 30)[-1].x, exact(schedule)
    bent = (schedule, name) == ("gvp", "flow-euler")  # Euler's steps leave a bent path outwards
    assert x.mean().item() == pytest.approx(truth.mean().item(), abs=(0.02 if bent else 0.01) * DATA.std)
    assert x.std().item() == pytest.approx(truth.std().item(), rel=limit)


@pytest.mark.parametrize(("schedule", "name"), [(s, n) for s, n, *_ in CASES])
@pytest.mark.parametrize("steps", [1, 2, 5, 6])
def test_steps_count_network_evaluations(schedule: str, name: str, steps: int) -> None:
    walked = walk(schedule, name, steps)
    heun = name.endswith("-heun")
    evaluations = 2 * ((steps + 1) // 2) - 1 if heun else steps  # Heun takes two a step but for the last
    assert [(step.index, step.total) for step in walked] == [(k + 1, evaluations) for k in range(evaluations)]
    assert all(step.x.isfinite().all() for step in walked)


@pytest.mark.parametrize(
    ("schedule", "name", "target"),
    [(s, n, t) for s, n in (("ddpm", "dpmpp"), ("ddpm", "unipc"), ("flow", "flow-heun")) for t in ("x0", "v")]
    + [("ddpm", "dpmpp", "flow"), ("flow", "unipc", "x0"), ("edm", "edm-heun", "eps"), ("edm", "edm-euler", "v")]
    + [("gvp", "flow-heun", "v"), ("gvp", "unipc", "x0")],
)
def test_what_the_network_predicts_does_not_matter(schedule: str, name: str, target: str) -> None:
    expected = walk(schedule, name, 11)[-1].x
    torch.testing.assert_close(walk(schedule, name, 11, target)[-1].x, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(s, n) for s, n, *_ in CASES if (s, n[:4]) != ("gvp", "flow")],  # whose steps leave the arc
)
def test_network_gets_the_time_of_its_input(schedule: str, name: str) -> None:
    """x_t of known data lies on its path, so alpha(t) x0 + sigma(t) x_T is what the network must be shown at t."""
    kind, point, shown = SCHEDULES[schedule], 0.7, []

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        shown.append((x, t))
        alpha, sigma = kind.alpha_sigma(t, x)
        eps = (x - alpha * point) / sigma
        return encode(TARGETS[schedule], torch.full_like(x, point), eps, alpha, sigma)  # type: ignore[arg-type]

    denoiser = Denoiser(backbone, kind, TARGETS[schedule], time=kind.time)  # type: ignore[arg-type]
    *_, step = sample(denoiser, X_T[:2], sampler=name, steps=9)
    torch.testing.assert_close(step.x, torch.full_like(step.x, point), atol=1e-4, rtol=0)
    noise = (shown[0][0] - kind.alpha_sigma(shown[0][1], shown[0][0])[0] * point) / kind.alpha_sigma(*shown[0][::-1])[1]
    for x, t in shown:
        alpha, sigma = kind.alpha_sigma(t, x)
        torch.testing.assert_close(x, alpha * point + sigma * noise, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("schedule", "name"), [(s, n) for s, n, *_ in CASES])
def test_image_of_a_seed_is_the_same_in_any_batch_and_call(schedule: str, name: str) -> None:
    kind = SCHEDULES[schedule]
    denoiser = DATA.denoiser(kind, TARGETS[schedule])  # type: ignore[arg-type]

    def images(seeds: list[int]) -> Tensor:
        *_, step = sample(denoiser, SeededNoise(seeds, (1, 4, 4))(0), sampler=name, steps=5)
        return step.x

    together = images([1, 2, 3])
    torch.testing.assert_close(images([2])[0], together[1])
    torch.testing.assert_close(images([3, 1]), together[[2, 0]])


def test_solver_walks_a_shorter_training_schedule() -> None:
    short = DDPM.linear(100)
    *_, step = sample(DATA.denoiser(short), X_T, sampler="dpmpp", steps=50)
    bar = short.alpha_bar[-1]
    truth = DATA.flow_map(X_T, math.sqrt(bar), math.sqrt(1 - bar))
    assert (step.x - truth).abs().max() < 0.03


@pytest.mark.parametrize("name", ["flow-heun", "ddim", "unipcc"])
def test_solvers_of_other_makers_are_not_taken_for_one_of_diffusers(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is none of diffusers' solvers"):
        Solver(name)
