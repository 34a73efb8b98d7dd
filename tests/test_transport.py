"""SiT's transport: numbers of the official programs, and distributions that are known in closed form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import DATA
from gaussian import Gaussian
from udit.diffusion.adaptive import Dopri5
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Prediction
from udit.diffusion.flow import Flow
from udit.diffusion.sample import Sampler, SeededNoise, make_sampler, sample
from udit.diffusion.transport import Heun, ProbabilityFlow, Stochastic, coefficients, transport_loss
from udit.errors import UserError
from udit.parity import Report, check_file

REFERENCE = dict(np.load(DATA / "flow.npz"))
INPUTS = {"flow_x0_seed", "loss_t", "guidance_interval"}


def failed(report: Report) -> set[str]:
    return {check.name.split(" ")[0] for check in report.checks if not check.ok}


def test_official_losses_and_trajectories() -> None:
    report = check_file(DATA / "flow.npz")
    assert report.ok, str(report)
    assert {check.name for check in report.checks} == set(REFERENCE) - INPUTS


def test_every_altered_or_unknown_array_fails(tmp_path: Path) -> None:
    altered = {name: value if name in INPUTS else value * 1.001 for name, value in REFERENCE.items()}
    novel = {"sit_sde_VP_sigma_Euler_Mean_6": np.zeros(1), "repa_loss_vp": np.zeros(1), "novel": np.zeros(1)}
    np.savez(tmp_path / "case.npz", **altered, **novel)
    assert failed(check_file(tmp_path / "case.npz")) == (set(altered) - INPUTS) | set(novel)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss_t": np.zeros(0)}, "loss_t (is missing, or no row of times)"),
        ({"guidance_interval": np.zeros(3)}, "guidance_interval (is missing, or no pair of times)"),
        ({"flow_x0_seed": np.array([0.5])}, "flow_x0_seed (0.5 is no whole number)"),
    ],
)
def test_inputs_no_reference_holds_fail(changes: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", **REFERENCE | changes)
    report = check_file(tmp_path / "case.npz")
    assert not report.ok
    assert said in str(report)


@pytest.mark.parametrize("path", ["linear", "gvp", "vp"])
def test_slopes_are_the_derivatives(path: str) -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    at, before, after = (coefficients(path, t + shift) for shift in (0.0, -1e-6, 1e-6))  # type: ignore[arg-type]
    torch.testing.assert_close(at.alpha_slope, (after.alpha - before.alpha) / 2e-6, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(at.sigma_slope, (after.sigma - before.sigma) / 2e-6, rtol=1e-6, atol=1e-8)
    assert (at.diffusion > 0).all()


# ---- a Gaussian, whose samples are known -----------------------------------------------------------------------------


def drawn(sampler: Sampler, steps: int, path: str = "linear", count: int = 4) -> tuple[Tensor, Tensor]:
    """x_T and the samples, float64."""
    flow = Flow(path)  # type: ignore[arg-type]
    noise = SeededNoise(range(count), (1, 32, 32))
    x = noise(0).double()
    *_, last = sample(Gaussian().denoiser(flow, flow.target), x, sampler=sampler, steps=steps, noise=noise)
    return x, last.x


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_errors_of_the_ode_fall_with_the_order_of_the_method(path: str, heun: bool, order: int) -> None:
    errors = []
    for steps in (20, 40):
        x, ours = drawn(ProbabilityFlow(heun), steps, path)
        errors.append((ours - Gaussian().flow_map(x, 0.0, 1.0)).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("form", ["sigma", "linear", "decreasing", "bump"])
def test_samples_of_every_sde_have_the_data_s_mean_and_spread(path: str, form: str) -> None:
    """4,096 values: mean and deviation are off by less than 4.5 standard errors, but for the steps' own error."""
    _, ours = drawn(Stochastic(form), 100, path)  # type: ignore[arg-type]
    n = ours.numel()
    assert ours.mean().item() == pytest.approx(0.3, abs=4.5 * 0.5 / n**0.5 + 0.01)
    assert ours.std().item() == pytest.approx(0.5, abs=4.5 * 0.5 / (2 * n) ** 0.5 + 0.01)


def test_noise_decides_the_samples_of_an_sde_and_not_those_of_the_ode() -> None:
    denoiser = Gaussian().denoiser(Flow(), "flow")
    x = SeededNoise([0], (1, 4, 4))(0)

    def last(sampler: Sampler, seed: int) -> Tensor:
        *_, end = sample(denoiser, x, sampler=sampler, steps=5, noise=SeededNoise([seed], (1, 4, 4)))
        return end.x

    assert not torch.equal(last(make_sampler("flow-sde"), 1), last(make_sampler("flow-sde"), 2))
    assert torch.equal(last(ProbabilityFlow(), 1), last(ProbabilityFlow(), 2))
    assert last(make_sampler("flow-sde"), 1).dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    "sampler", [Stochastic(), Stochastic(heun=True), ProbabilityFlow(), ProbabilityFlow(True, False)], ids=str
)
def test_the_network_is_asked_at_the_times_that_are_told(sampler: Sampler, steps: int) -> None:
    asked: list[float] = []

    def network(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        asked.append(t[0].item())
        return x

    denoiser = Gaussian().denoiser(Flow(), "flow")
    object.__setattr__(denoiser, "backbone", network)
    list(sample(denoiser, torch.zeros(1, 1, 2, 2), sampler=sampler, steps=steps, noise=SeededNoise([0], (1, 2, 2))))
    assert asked == pytest.approx(sampler.times(denoiser, steps).tolist())


def test_one_step_goes_all_the_way() -> None:
    """To the mean of the data, which is all that a network can know of pure noise."""
    denoiser = Gaussian().denoiser(Flow(), "flow")
    [step] = sample(denoiser, torch.zeros(1, 1, 2, 2), sampler="flow-sde", steps=1)
    assert step.x.isfinite().all()


@pytest.mark.parametrize("sampler", [Stochastic(), ProbabilityFlow()], ids=str)
def test_a_process_that_is_no_flow_is_a_one_line_error(
    sampler: Sampler, one_line: Callable[[BaseException], str]
) -> None:
    denoiser = Gaussian().denoiser(DDPM.linear(10))
    with pytest.raises(UserError) as caught:
        list(sample(denoiser, torch.zeros(1, 1, 2, 2), sampler=sampler, steps=3))
    one_line(caught.value)


def test_a_velocity_has_no_weight(one_line: Callable[[BaseException], str]) -> None:
    x, t = torch.zeros(1, 1, 2, 2), torch.tensor([0.5])
    with pytest.raises(UserError, match="weight is 'likelihood'") as caught:
        transport_loss(lambda x, t, y=None: x, x, t, x, weight="likelihood")
    one_line(caught.value)


# ---- few evaluations -------------------------------------------------------------------------------------------------


class Mixture:
    """The exact denoiser of three normals on the linear path, whose flow is far from straight."""

    means, spread = torch.tensor([-1.0, 0.2, 1.3], dtype=torch.float64), 0.1
    schedule = Flow()

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        z, t = x.double()[..., None], t.double().view(-1, 1, 1, 1, 1)
        variance = ((1 - t) * self.spread) ** 2 + t**2
        share = torch.softmax(-((z - (1 - t) * self.means) ** 2) / (2 * variance), dim=-1)
        guess = self.means + (1 - t) * self.spread**2 / variance * (z - (1 - t) * self.means)
        x0 = (share * guess).sum(-1)
        return Prediction(x0.to(x), ((x.double() - (1 - t[..., 0]) * x0) / t[..., 0]).to(x), None)


class EndsAt(Heun):
    """Heun's method whose last step has another length, as diffusers' has a thousandth at any count."""

    last = 0.001

    def grid(self, steps: int | str) -> Tensor:
        inner = torch.linspace(1, self.last, (int(steps) - 1) // 2 + 1, dtype=torch.float64)
        return torch.cat([inner, torch.zeros(1)])


def test_heun_at_few_evaluations_beats_euler_and_a_last_step_of_a_thousandth() -> None:
    x = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0))

    def end(sampler: Sampler, n: int) -> Tensor:
        *steps, last = sampler(Mixture(), x, n, None, SeededNoise([0], (1, 1, 1)))  # type: ignore[arg-type]
        assert len(steps) + 1 == n
        return last.x

    truth = end(Heun(), 601)

    def error(sampler: Sampler, n: int) -> float:
        return float((end(sampler, n) - truth).square().mean().sqrt())

    ours = {n: error(Heun(), n) for n in (3, 7, 9, 11, 15, 19, 49)}  # at 5 it is worse here and better on the digits
    for n, found in ours.items():
        assert found < error(make_sampler("flow-euler"), n), n
        assert found < error(EndsAt(), n) * (0.65 if n < 9 else 1.1), n


def test_levels_of_heun() -> None:
    assert Heun().grid(1).tolist() == [1, 0]
    assert Heun().grid(3).tolist() == [1, 0.5, 0]
    assert Heun().grid(5).tolist() == pytest.approx([1, 0.55, 0.1, 0])
    assert Heun().grid(6).tolist() == Heun().grid(5).tolist()
    assert Heun().grid(21).tolist()[-2:] == pytest.approx([1 / 42, 0])


@pytest.mark.slow
@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_dopri5_follows_the_probability_flow_of_a_gaussian(path: str) -> None:
    """Needs the extra ``ode``."""
    data = Gaussian()
    denoiser = data.denoiser(Flow(path), "flow" if path == "linear" else "gvp")
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = data.flow_map(x, 0.0, 1.0)
    loose, tight = (
        list(sample(denoiser, x, sampler=Dopri5(rtol=error, atol=error), steps=2))[-1].x for error in (1e-3, 1e-7)
    )
    assert (tight - truth).abs().max() < 1e-5
    assert (tight - truth).abs().max() < (loose - truth).abs().max() < 1e-2


@pytest.mark.slow
def test_dopri5_integrates_each_sample_by_itself() -> None:
    """Needs the extra ``ode``."""
    denoiser = Gaussian().denoiser(Flow(), "flow")
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1]).view(
        3, 1, 1, 1
    )
    steps = list(sample(denoiser, x, sampler=Dopri5(), steps=3))
    assert [(step.index, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    alone = list(sample(denoiser, x[1:2], sampler=Dopri5(), steps=3))[-1].x
    assert torch.equal(steps[-1].x[1:2], alone)


def test_dopri5_without_torchdiffeq_and_with_an_origin_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, one_line: Callable[[BaseException], str]
) -> None:
    denoiser = Gaussian().denoiser(Flow(), "flow")
    with pytest.raises(UserError, match="chooses its times as it goes") as caught:
        Dopri5().times(denoiser, 3)
    one_line(caught.value)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UserError, match=r"pip install 'udit\[ode\]'") as caught:
        list(sample(denoiser, torch.zeros(1, 1, 2, 2), sampler=Dopri5(), steps=2))
    one_line(caught.value)
