"""Losses equal their closed forms, and their random draws depend on the sample alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaussian import Gaussian
from udit.diffusion.ddpm import DDPM, ancestral_moments, hybrid_loss
from udit.diffusion.denoiser import Denoiser, Prediction, mix, null_labels
from udit.diffusion.flow import Flow, flow_loss
from udit.diffusion.likelihood import pixel_log_likelihood
from udit.diffusion.objective import Losses, draw, drop_labels
from udit.diffusion.targets import Target, decode, encode
from udit.errors import UserError

DDPM_1000 = DDPM.linear(1000)
TARGETS: list[Target] = ["eps", "x0", "v", "flow", "gvp"]


# ---- targets ---------------------------------------------------------------------------------------------------------


@given(st.sampled_from(TARGETS), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_decoding_undoes_encoding(target: Target, alpha: float, sigma: float, seed: int) -> None:
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    a, s = torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    output = encode(target, x0, eps, a, s)
    back_x0, back_eps = decode(target, output, a * x0 + s * eps, a, s)
    torch.testing.assert_close(back_x0, x0, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(back_eps, eps, atol=1e-9, rtol=1e-9)


@given(st.sampled_from(TARGETS), st.floats(0.01, 1), st.floats(0.01, 1))
def test_encoding_undoes_decoding(target: Target, alpha: float, sigma: float) -> None:
    output, x_t = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, s = torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    x0, eps = decode(target, output, x_t, a, s)
    torch.testing.assert_close(a * x0 + s * eps, x_t, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(encode(target, x0, eps, a, s), output, atol=1e-9, rtol=1e-9)


def test_targets_are_what_their_papers_say() -> None:
    x0, eps, a, s = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.8), torch.tensor(0.6)
    said = [3, 2, 0.8 * 3 - 0.6 * 2, 1, math.pi / 2 * (0.8 * 3 - 0.6 * 2)]
    assert [encode(target, x0, eps, a, s).item() for target in TARGETS] == pytest.approx(said)


@pytest.mark.parametrize(("path", "target"), [("linear", "flow"), ("gvp", "gvp")])
def test_flow_targets_are_the_velocity_of_their_path(path: str, target: Target) -> None:
    x0, eps = torch.randn(2, 1, 1, 2, 2, dtype=torch.float64)
    flow, t = Flow(path), torch.tensor([0.3], dtype=torch.float64)  # type: ignore[arg-type]
    ahead, behind = (mix(flow, x0, eps, t + d) for d in (1e-5, -1e-5))
    torch.testing.assert_close(encode(target, x0, eps, *flow.alpha_sigma(t, x0)), (ahead - behind) / 2e-5)


def test_denoiser_tells_the_network_its_own_time_and_splits_off_the_variance() -> None:
    told = []

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        told.append((t, y))
        return torch.cat([0.5 * x, torch.full_like(x, 7)], dim=1)

    denoiser = Denoiser(backbone, DDPM_1000.respaced(10), learn_sigma=True, null_label=3, num_classes=3)
    x, t, y = torch.randn(2, 2, 4, 4), torch.tensor([0, 9]), torch.tensor([1, 3])
    prediction = denoiser(x, t, y)
    assert isinstance(prediction, Prediction)
    assert told[0][0].tolist() == [0, 999]
    assert told[0][1] is y
    assert torch.equal(prediction.eps, 0.5 * x)
    assert torch.equal(prediction.variance, torch.full_like(x, 7))
    alpha, sigma = denoiser.schedule.alpha_sigma(t, x)
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x, atol=1e-5, rtol=1e-5)


def test_half_precision_predictions_are_decoded_in_single() -> None:
    denoiser = Denoiser(lambda x, t, y=None: x, DDPM_1000)
    x = torch.randn(1, 2, 4, 4).half()
    prediction = denoiser(x, torch.tensor([999]))
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
    assert prediction.x0.isfinite().all()


@pytest.mark.parametrize(
    ("classes", "null", "y", "said"),
    [
        (0, None, [0], "labels were given to an unconditional model"),
        (5, 5, [0, 6], "label 6 is out of range; the model knows 0 to 4"),
        (5, 5, [-1], "label -1 is out of range"),
        (5, None, [5], "label 5 is out of range"),
    ],
)
def test_labels_out_of_range_are_refused(classes: int, null: int | None, y: list[int], said: str) -> None:
    denoiser = Denoiser(lambda x, t, y=None: x, DDPM_1000, null_label=null, num_classes=classes)
    with pytest.raises(UserError, match=said):
        denoiser.check_labels(torch.tensor(y))


def test_labels_in_range_and_the_null_label_pass() -> None:
    denoiser = Denoiser(lambda x, t, y=None: x, DDPM_1000, null_label=5, num_classes=5)
    denoiser.check_labels(None)
    denoiser.check_labels(torch.tensor([0, 4, 5]))
    assert null_labels(torch.tensor([0, 4]), 5).tolist() == [5, 5]


# ---- the hybrid loss of the reference --------------------------------------------------------------------------------


def golden() -> tuple[Denoiser, Tensor, Tensor, Tensor]:
    x0 = torch.linspace(-1, 1, 32, dtype=torch.float64).float().view(2, 4, 2, 2)
    noise = torch.arange(32, dtype=torch.float64).cos().float().view(2, 4, 2, 2)
    denoiser = Denoiser(lambda x, t, y=None: torch.cat([0.5 * x, x.tanh()], dim=1), DDPM_1000, learn_sigma=True)
    return denoiser, x0, torch.tensor([0, 700]), noise


def test_hybrid_loss_has_the_numbers_of_the_reference() -> None:
    losses = hybrid_loss(*golden())
    assert losses.mse.tolist() == pytest.approx([0.6309576, 0.1285906], rel=2e-6)
    assert losses.vb is not None
    assert losses.vb.tolist() == pytest.approx([2.0713072, 0.00133046], rel=5e-6)
    assert torch.equal(losses.loss, losses.mse + losses.vb)


def test_bound_trains_the_variance_alone_and_the_error_the_prediction_alone() -> None:
    _, x0, t, noise = golden()
    eps, variance = (torch.randn(2, 4, 2, 2, requires_grad=True) for _ in range(2))
    denoiser = Denoiser(lambda x, t, y=None: torch.cat([eps, variance], dim=1), DDPM_1000, learn_sigma=True)
    losses = hybrid_loss(denoiser, x0, t, noise)
    grads = torch.autograd.grad(losses.vb.sum(), [eps, variance], allow_unused=True, retain_graph=True)
    assert grads[0] is None or not grads[0].any()
    assert grads[1].any()
    grads = torch.autograd.grad(losses.mse.sum(), [eps, variance], allow_unused=True)
    assert grads[0].any()
    assert grads[1] is None or not grads[1].any()


def test_hybrid_loss_without_learned_variance_is_the_plain_error() -> None:
    _, x0, t, noise = golden()
    plain = Denoiser(lambda x, t, y=None: 0.5 * x, DDPM_1000)
    losses, flow = hybrid_loss(plain, x0, t, noise), flow_loss(plain, x0, t, noise)
    assert losses.vb is None
    assert torch.equal(losses.loss, losses.mse)
    torch.testing.assert_close(losses.mse, hybrid_loss(*golden()).mse)
    torch.testing.assert_close(losses.mse, flow.mse)


def test_losses_of_a_sample_do_not_depend_on_its_batch() -> None:
    denoiser, x0, t, noise = golden()
    together = hybrid_loss(denoiser, x0, t, noise)
    alone = [hybrid_loss(denoiser, x0[i : i + 1], t[i : i + 1], noise[i : i + 1]).loss for i in range(2)]
    torch.testing.assert_close(together.loss, torch.cat(alone))


def test_pixel_likelihoods_of_all_256_values_sum_to_one() -> None:
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, scale in ((0.0, 0.5), (0.9, 0.1), (-1.3, 0.3), (0.2, 0.004)):
        log_p = pixel_log_likelihood(values, torch.tensor(mean).double(), torch.tensor(scale).double().log())
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_pixel_likelihood_is_near_the_normal_density() -> None:
    x = torch.linspace(-0.9, 0.9, 10, dtype=torch.float64)
    log_p = pixel_log_likelihood(x, torch.tensor(0.1).double(), torch.tensor(0.4).double().log())
    density = torch.distributions.Normal(0.1, 0.4).log_prob(x) + math.log(2 / 255)
    torch.testing.assert_close(log_p.exp(), density.exp().double(), rtol=0.02, atol=1e-5)  # ADM's tanh stands for erf


def test_learned_range_runs_between_the_two_variances() -> None:
    t, x = torch.tensor([0, 1, 500]), torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    for fraction, table in ((-1.0, DDPM_1000.posterior_log_variance), (1.0, np.log(DDPM_1000.betas))):
        _, log_variance = ancestral_moments(DDPM_1000, x, torch.full_like(x, fraction), x, t)
        assert log_variance[:, 0, 0, 0].tolist() == pytest.approx(table[[0, 1, 500]].tolist(), rel=1e-9)


# ---- Gaussian data ---------------------------------------------------------------------------------------------------

DATA = Gaussian(mean=0.3, std=0.5)


def monte_carlo(losses: Losses) -> tuple[float, float]:
    """Mean over samples, and its standard error."""
    return losses.mse.mean().item(), (losses.mse.std() / len(losses.mse) ** 0.5).item()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("t", [20, 300, 900])
def test_best_denoiser_has_the_expected_error_on_ddpm(target: Target, t: int) -> None:
    """The error of the best prediction is the variance left given x_t: a**2 std**2 / V of eps, and so on."""
    x0, noise = DATA.draw(4000, 1, 4, 4, seed=1), torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    times = torch.full((4000,), t)
    measured, error = monte_carlo(flow_loss(DATA.denoiser(DDPM_1000, target), x0, times, noise.double()))
    a2 = DDPM_1000.alpha_bar[t]
    a, s = math.sqrt(a2), math.sqrt(1 - a2)
    of_eps = a2 * DATA.std**2 / (a2 * DATA.std**2 + s**2)
    expected = {"eps": of_eps, "x0": of_eps * s**2 / a2, "v": of_eps / a2, "flow": of_eps * (a + s) ** 2 / a2}
    expected = (expected | {"gvp": expected["v"] * (math.pi / 2) ** 2})[target]
    assert error < 0.01 * expected
    assert measured == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize(("path", "target"), [("linear", "flow"), ("gvp", "gvp")])
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_best_denoiser_has_the_expected_error_on_a_flow_path(t: float, path: str, target: Target) -> None:
    x0, noise = DATA.draw(4000, 1, 4, 4, seed=3), torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    times = torch.full((4000,), t, dtype=torch.float64)
    flow = Flow(path)  # type: ignore[arg-type]
    measured, error = monte_carlo(flow_loss(DATA.denoiser(flow, target), x0, times, noise.double()))
    a, s = (1 - t, t) if path == "linear" else (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2))
    expected = DATA.std**2 / (a**2 * DATA.std**2 + s**2) * (1 if path == "linear" else (math.pi / 2) ** 2)
    assert error < 0.01 * expected
    assert measured == pytest.approx(expected, abs=4 * error)


def test_any_other_denoiser_is_worse() -> None:
    x0, noise = DATA.draw(4000, 1, 4, 4, seed=1), torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    times = torch.full((4000,), 300)
    best, error = monte_carlo(hybrid_loss(DATA.denoiser(DDPM_1000), x0, times, noise.double()))
    for wrong in (Gaussian(0.4, 0.5), Gaussian(0.3, 0.6)):
        assert monte_carlo(hybrid_loss(wrong.denoiser(DDPM_1000), x0, times, noise.double()))[0] > best + 2 * error


@pytest.mark.parametrize("t", [1, 50, 999])
def test_bound_of_the_best_denoiser_has_its_closed_form(t: int) -> None:
    """With the smallest variance the KL is coef1**2 (x0 - E x0)**2 / (2 var), whose mean is known."""
    x0, noise = DATA.draw(4000, 1, 4, 4, seed=5), torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(6))
    vb = hybrid_loss(DATA.denoiser(DDPM_1000, variance=-1.0), x0, torch.full((4000,), t), noise.double()).vb
    a2 = DDPM_1000.alpha_bar[t]
    left = DATA.std**2 * (1 - a2) / (a2 * DATA.std**2 + 1 - a2)
    coefficient = DDPM_1000.posterior_coefficients[0][t]
    expected = 0.5 * coefficient**2 * left / DDPM_1000.posterior_variance[t] / math.log(2)
    error = (vb.std() / len(vb) ** 0.5).item()
    assert error < 0.01 * expected
    assert vb.mean().item() == pytest.approx(expected, abs=4 * error)


def test_noising_mixes_signal_and_noise_by_the_schedule() -> None:
    x0, noise = torch.randn(2, 3, 1, 2, 2)
    x_t = mix(DDPM_1000, x0, noise, torch.tensor([0, 500, 999]))
    for i, t in enumerate((0, 500, 999)):
        a2 = DDPM_1000.alpha_bar[t]
        torch.testing.assert_close(x_t[i], (x0[i] * math.sqrt(a2) + noise[i] * math.sqrt(1 - a2)).float())


# ---- draws -----------------------------------------------------------------------------------------------------------

KEYS = [(step, place) for step in range(4) for place in range(8)]


@pytest.mark.parametrize("schedule", [DDPM_1000, Flow()], ids=["ddpm", "flow"])
def test_draws_belong_to_the_sample_not_to_the_batch(schedule: Any) -> None:
    together = draw(schedule, (2, 4, 4), 0, "train", KEYS, levels=3)
    assert (together.t.shape, together.noise.shape, together.uniform.shape) == ((32,), (32, 2, 4, 4), (32, 3))
    for place in (0, 13, 31):
        alone = draw(schedule, (2, 4, 4), 0, "train", [KEYS[place]], levels=3)
        for field in ("t", "noise", "uniform"):
            assert torch.equal(getattr(alone, field)[0], getattr(together, field)[place])


def test_draws_differ_by_seed_purpose_and_key() -> None:
    noise = [
        draw(Flow(), (1, 2, 2), seed, purpose, [key]).noise
        for seed, purpose, key in (
            (0, "train", (1, 2)),
            (1, "train", (1, 2)),
            (0, "test", (1, 2)),
            (0, "train", (2, 1)),
        )
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(noise) for b in noise[:i])


def test_dropped_labels_become_the_null_label_at_the_rate() -> None:
    y = torch.arange(10).repeat(2000)
    uniform = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    dropped = drop_labels(y, 10, 0.1, uniform)
    assert dropped.shape == y.shape
    assert torch.equal(dropped == 10, uniform[:, 0] < 0.1)
    assert torch.equal(dropped[dropped != 10], y[dropped != 10])
    assert (dropped == 10).float().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 20_000))
    assert torch.equal(dropped, drop_labels(y, 10, 0.1, uniform[:, 0]))


def test_labels_dropped_level_by_level_are_seldom_all_dropped() -> None:
    """As the U-DiT release draws them: all three levels in 0.1 % of cases, at least one in 27.1 %."""
    y = torch.zeros(100_000, dtype=torch.long)
    uniform = torch.rand(100_000, 3, generator=torch.Generator().manual_seed(0))
    dropped = drop_labels(y, 7, 0.1, uniform) == 7
    assert dropped.shape == (100_000, 3)
    for measured, expected in ((dropped.all(1), 0.001), (dropped.any(1), 0.271), (dropped[:, 2], 0.1)):
        spread = 4 * math.sqrt(expected * (1 - expected) / 100_000)
        assert measured.double().mean().item() == pytest.approx(expected, abs=spread)


@pytest.mark.parametrize("levels", [1, 3])
def test_rates_of_zero_and_one_drop_none_and_all(levels: int) -> None:
    y, uniform = torch.tensor([4, 2]), torch.tensor([[0.0] * levels, [0.9999999] * levels])
    assert (drop_labels(y, 9, 0.0, uniform).view(2, -1) == y[:, None]).all()
    assert (drop_labels(y, 9, 1.0, uniform) == 9).all()


@pytest.mark.slow
def test_a_loss_compiles_as_one_graph_when_it_is_first_called() -> None:
    """Its tables used to be computed behind a lock, at which a compiler of graphs stops."""

    def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.cat([x * t.view(-1, 1, 1, 1), x], dim=1)

    schedule = DDPM.cosine(50)
    denoiser = Denoiser(backbone, schedule, learn_sigma=True)
    x0, t, noise = torch.randn(2, 3, 4, 4), torch.tensor([0, 30]), torch.randn(2, 3, 4, 4)
    loss = torch.compile(lambda *given: schedule.loss(denoiser, *given).loss, backend="eager", fullgraph=True)
    compiled = loss(x0, t, noise)
    assert torch.equal(compiled, hybrid_loss(denoiser, x0, t, noise).loss)
