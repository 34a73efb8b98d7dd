"""Where a training looks and how it weighs errors: densities, weightings and targets against their papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gaussian import Gaussian
from udit.diffusion.config import DDPMConfig, FlowConfig, process_from
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.flow import Flow
from udit.diffusion.learning import Density, Learning, shifted, unshifted
from udit.diffusion.sample import SeededNoise, make_sampler
from udit.diffusion.schedule import Schedule
from udit.diffusion.targets import Target, decode, x0_per
from udit.errors import UserError
from udit.run.recipes import load_run
from udit.training.objective_plot import save_objective, weights

OneLine = Callable[[BaseException], str]
DENSITIES = {
    "logit-normal": Density("logit-normal", 0.5, 1.5),
    "mode": Density("mode", scale=1.29),
    "mode at the ends": Density("mode", scale=-0.6),
    "cosmap": Density("cosmap"),
}


# ---- densities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSITIES)
def test_times_are_distributed_as_their_density_says(name: str) -> None:
    density = DENSITIES[name]
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([density.draw(generator) for _ in range(4000)]).double().sort().values
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    pdf = density.pdf(grid)
    cumulated = pdf.cumsum(0) / 200_000
    assert float(cumulated[-1]) == pytest.approx(1, abs=2e-3)
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is exceeded by one honest sample in a thousand
    found = torch.from_numpy(np.interp(times.numpy(), grid.numpy(), cumulated.numpy()))
    steps = torch.arange(1, 4001, dtype=torch.float64) / 4000
    assert float((found - steps).abs().max()) < 1.95 / math.sqrt(4000)


def test_logit_normal_is_scipy_s() -> None:
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    z = torch.logit(t).numpy()
    said = stats.norm(0.5, 1.5).pdf(z) / (t * (1 - t)).numpy()
    assert DENSITIES["logit-normal"].pdf(t).numpy() == pytest.approx(said)


def test_cosmap_has_the_noise_of_the_cosine_schedule() -> None:
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    t = DENSITIES["cosmap"].mapped(u)
    assert (t / (1 - t)).numpy() == pytest.approx(torch.tan(math.pi / 2 * u).numpy())


def test_uniform_draws_keep_their_bits() -> None:
    for schedule in (Flow(), DDPM.linear(100)):
        first, second = (torch.Generator().manual_seed(3) for _ in range(2))
        discrete = isinstance(schedule, DDPM)
        plain = torch.randint(100, (), generator=second) if discrete else torch.rand((), generator=second)
        assert torch.equal(schedule.draw(first), plain)


@pytest.mark.parametrize("shift", [1.0, 0.4, 3.0])
def test_shift_multiplies_the_ratio_of_noise_to_signal(shift: float) -> None:
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    moved = shifted(t, shift)
    torch.testing.assert_close(moved / (1 - moved), shift * t / (1 - t))
    torch.testing.assert_close(unshifted(moved, shift), t)
    assert shifted(torch.tensor([0.0, 1.0]), shift).tolist() == [0, 1]


def test_shifted_times_have_the_shifted_density() -> None:
    flow = Flow(learning=Learning(DENSITIES["logit-normal"]), shift=3.0)
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    assert float(torch.trapezoid(flow.density(t), t)) == pytest.approx(1, abs=1e-3)
    # logit(shifted(u)) = logit(u) + ln 3
    said = stats.norm(0.5 + math.log(3), 1.5).pdf(torch.logit(t).numpy()) / (t * (1 - t)).numpy()
    assert flow.density(t).numpy() == pytest.approx(said)


def test_discrete_times_follow_a_density() -> None:
    schedule = DDPMConfig(steps=50, density="logit-normal", density_mean=1.0).build()
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([schedule.draw(generator) for _ in range(3000)])
    assert times.dtype == torch.int64
    assert 0 <= int(times.min()) < int(times.max()) <= 49
    assert float(times.double().mean()) / 50 == pytest.approx(0.69, abs=0.02)


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow", "gvp"])
def test_how_far_x0_moves_with_a_target(target: Target) -> None:
    alpha, sigma, x_t, out = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.4, 0.3, -1.1))
    first, second = (decode(target, value, x_t, alpha, sigma)[0] for value in (out, out + 1))
    assert abs(float(second - first)) == pytest.approx(float(x0_per(target, alpha, sigma)))


def test_min_snr_is_its_paper_s_for_every_target() -> None:
    """Hang et al. 2023, Sec. 3.4: min(SNR, g) for x0, min(SNR, g) / SNR for eps, min(SNR, g) / (SNR + 1) for v."""
    alpha = torch.linspace(0.05, 0.99, 20, dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()
    snr, learning = (alpha / sigma) ** 2, Learning(weighting="min-snr", gamma=5)
    capped = snr.clamp(max=5)
    for target, said in {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}.items():
        weight = learning.weight(target, alpha, sigma, alpha)  # type: ignore[arg-type]
        torch.testing.assert_close(weight, said)
    soft = Learning(weighting="soft-min-snr", gamma=5).weight("x0", alpha, sigma, alpha)
    torch.testing.assert_close(soft, 5 * snr / (snr + 5))


def loss_of(schedule: Schedule, output: Tensor, t: Tensor, x0: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    denoiser = Denoiser(lambda x, t, y=None: output, schedule, schedule.target, time="unit")
    losses = schedule.loss(denoiser, x0, t, noise)
    return losses.loss, losses.mse


def test_velocity_error_of_a_predicted_x0_is_jit_s() -> None:
    """Li & He 2025: v = (x - z_t) / (1 - t) with 1 - t at least 0.05; their t is 1 - t here."""
    x0, noise, guess = torch.randn(3, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.01, 0.05, 0.5, 1.0], dtype=torch.float64)
    schedule = FlowConfig(predict="x0", error="velocity").build()
    at = t.view(-1, 1, 1, 1)
    z = (1 - at) * x0 + at * noise
    theirs = [((image - z) / at.clamp(min=0.05)) for image in (guess, x0)]
    said = (theirs[0] - theirs[1]).square().mean(dim=(1, 2, 3))
    loss, mse = loss_of(schedule, guess, t, x0, noise)
    torch.testing.assert_close(loss, said.to(loss.dtype), rtol=1e-5, atol=0)
    torch.testing.assert_close(mse, (guess - x0).square().mean(dim=(1, 2, 3)).to(mse.dtype), rtol=1e-5, atol=0)


def test_cosine_term_is_one_minus_the_cosine_along_channels() -> None:
    x0, noise, guess = torch.randn(3, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.2, 0.8])
    loss, mse = loss_of(FlowConfig(cosine=0.7).build(), guess, t, x0, noise)
    velocity = noise - x0
    cosine = (guess * velocity).sum(1) / (guess.norm(dim=1) * velocity.norm(dim=1))
    torch.testing.assert_close(loss - mse, 0.7 * (1 - cosine).mean(dim=(1, 2)), rtol=1e-5, atol=1e-6)


def test_weighting_by_density_draws_uniformly_and_expects_the_same() -> None:
    weighted = FlowConfig(density="logit-normal", weighting="density").build()
    drawn = FlowConfig(density="logit-normal").build()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(weighted.draw(generators[0]), Flow().draw(generators[1]))
    t = (torch.arange(4000) + 0.5) / 4000
    x0, noise = torch.zeros(4000, 1, 1, 1), t.view(-1, 1, 1, 1) + 1  # a loss that depends on the time
    loss, _ = loss_of(weighted, torch.zeros_like(x0), t, x0, noise)
    plain = torch.stack([drawn.draw(generators[0]) for _ in range(4000)])
    assert float(loss.mean()) == pytest.approx(float((plain + 1).square().mean()), rel=0.03)


# ---- processes -------------------------------------------------------------------------------------------------------


def test_cosine_betas_are_their_paper_s() -> None:
    schedule = DDPM.cosine(1000)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    assert schedule.alpha_bar[:990] == pytest.approx(f[1:991] / f[0])
    assert schedule.betas.max() == 0.999


def test_zero_terminal_snr_is_its_paper_s_and_keeps_the_first_step() -> None:
    plain, rescaled = DDPM.linear(1000), DDPM.linear(1000).zero_terminal()
    assert rescaled.alpha_bar[-1] == 0
    assert rescaled.alpha_bar[0] == pytest.approx(plain.alpha_bar[0], rel=1e-12)
    roots = np.sqrt(plain.alpha_bar)
    said = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    assert np.sqrt(rescaled.alpha_bar) == pytest.approx(said, abs=1e-9)


PROCESSES: dict[str, DDPMConfig | FlowConfig] = {
    "v": DDPMConfig(predict="v"),
    "x0": DDPMConfig(predict="x0"),
    "cosine": DDPMConfig(betas="cosine"),
    "zero terminal": DDPMConfig(predict="v", zero_terminal_snr=True),
    "zero terminal x0": DDPMConfig(predict="x0", zero_terminal_snr=True, betas="cosine"),
    "flow x0": FlowConfig(predict="x0"),
    "flow v": FlowConfig(predict="v"),
    "gvp x0": FlowConfig(predict="x0", path="gvp"),
    "shifted": FlowConfig(shift=2.5),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_sampler_reaches_the_gaussian_whatever_is_predicted(name: str) -> None:
    process = PROCESSES[name]
    schedule = process.build()
    data = Gaussian()
    denoiser = data.denoiser(schedule, schedule.target)
    noise = SeededNoise(range(256), (1, 2, 2))
    for sampler in process.samplers():
        x = noise(0)
        for step in make_sampler(sampler)(denoiser, x, 40, None, noise):
            x = step.x
        assert torch.isfinite(x).all(), sampler
        assert float(x.mean()) == pytest.approx(data.mean, abs=0.06), sampler
        assert float(x.std()) == pytest.approx(data.std, abs=0.06), sampler


@pytest.mark.parametrize("name", PROCESSES)
def test_loss_of_the_best_denoiser_is_least(name: str) -> None:
    schedule = PROCESSES[name].build()
    data, generator = Gaussian(), torch.Generator().manual_seed(0)
    best = data.denoiser(schedule, schedule.target)
    x0, noise = data.draw(512, 1, 2, 2), torch.randn(512, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.stack([schedule.draw(generator) for _ in range(512)])
    honest = schedule.loss(best, x0, t, noise).loss.mean()
    for off in (-0.2, 0.2):
        worse = Denoiser(
            lambda x, t, y=None, off=off: best.backbone(x, t, y) + off, schedule, best.target, time=schedule.time
        )
        assert schedule.loss(worse, x0, t, noise).loss.mean() > honest


def test_reversed_network_may_predict_the_data() -> None:
    x, t = torch.randn(2, 1, 2, 2), torch.tensor([0.2, 0.6])
    told = []

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        told.append(t)
        return 0.5 * x

    denoiser = Denoiser(backbone, Flow(predict="x0"), "x0", time="unit", reversed_flow=True)
    assert torch.equal(denoiser(x, t).x0, 0.5 * x)
    torch.testing.assert_close(told[0], 1 - t)


# ---- recipes ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "eps on a path": ({"kind": "flow", "predict": "eps"}, "diffusion.predict is 'eps': at pure noise"),
    "velocity of steps": ({"kind": "ddpm", "error": "velocity"}, "discrete steps have not; use v"),
    "eps without signal": ({"kind": "ddpm", "zero_terminal_snr": True}, "eps says nothing of x0; predict v or x0"),
    "no spread": ({"kind": "flow", "density": "logit-normal", "density_std": 0}, "density_std is 0"),
    "velocity of no path": ({"kind": "ddpm", "predict": "velocity"}, "discrete steps have no velocity"),
    "a shift of steps": ({"kind": "ddpm", "shift": 3.0}, "shift does not go with kind ddpm: it moves the times of a"),
    "a shift of EDM": ({"kind": "edm", "shift": 3.0}, "shift does not go with kind edm: log_mean and log_std place"),
    "a shift of averages": ({"kind": "mean-flow", "shift": 3.0}, "shift does not go with kind mean-flow: density_mean"),
    "noise to the end": ({"kind": "flow", "zero_terminal_snr": True}, "a flow's last time is pure noise already"),
    "all at one end": ({"kind": "flow", "density": "logit-normal", "density_mean": 50}, "density_mean is 50; it must"),
    "all at both": ({"kind": "mean-flow", "density_std": 1e9}, "density_std is 1000000000.0; it must be at most 10"),
    "another density's key": ({"kind": "flow", "density_mean": 1.0}, "belongs to density logit-normal"),
    "gamma alone": ({"kind": "flow", "gamma": 4.0}, "gamma belongs to weighting min-snr"),
    "twice weighted": (
        {"kind": "flow", "predict": "x0", "error": "velocity", "weighting": "min-snr"},
        "leave one of them out",
    ),
    "all weights 1": ({"kind": "flow", "weighting": "density"}, "choose a density"),
    "EDM has its own": ({"kind": "edm", "predict": "x0"}, "predict does not go with kind edm"),
    "no times": ({"kind": "flow", "shift": 0}, "diffusion.shift is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_with_the_reason(name: str, one_line: OneLine) -> None:
    values, said = REFUSED[name]
    with pytest.raises(UserError) as error:
        process_from(values)
    assert said in one_line(error.value)


@pytest.mark.parametrize("sampler", FlowConfig.samplers())
def test_every_sampler_of_a_flow_moves_its_times_by_the_shift(sampler: str) -> None:
    denoisers = [Denoiser(lambda x, t, y=None: x, Flow(shift=s), "flow", time="unit") for s in (1, 3)]
    plain, moved = (make_sampler(sampler).times(denoiser, 7) for denoiser in denoisers)
    torch.testing.assert_close(moved, shifted(plain, 3.0), atol=3e-3, rtol=0)  # diffusers' times are a bit below


def test_shift_by_resolution_becomes_a_number() -> None:
    run = load_run("digits", ["diffusion.shift=resolution", "diffusion.shift_side=4"])
    assert run.diffusion.build().shift == 2.0  # type: ignore[attr-defined]
    assert run.plain()["diffusion"]["shift"] == 2.0


@pytest.mark.slow
def test_picture_shows_times_and_weights(tmp_path: Path) -> None:
    run = load_run("digits", ["diffusion.predict=x0", "diffusion.error=velocity", "diffusion.density=logit-normal"])
    fraction, weight = weights(run)
    assert 0.49 < float(fraction.mean()) < 0.51
    middle = int((fraction - 0.5).abs().argmin())
    assert float(weight[middle]) == pytest.approx(4.0, rel=0.01)
    save_objective(run, tmp_path / "objective.png")
    assert (tmp_path / "objective.png").read_bytes()[:4] == b"\x89PNG"
