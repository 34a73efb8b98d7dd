"""Schedules hold the numbers of the reference, and respacing keeps alpha_bar."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udit.diffusion.ddpm import DDPM
from udit.diffusion.flow import Flow
from udit.diffusion.schedule import gather
from udit.errors import UserError

DDPM_1000 = DDPM.linear(1000)


def test_linear_schedule_has_the_numbers_of_the_reference() -> None:
    s = DDPM_1000
    assert (s.betas[0], s.betas[-1], len(s)) == (pytest.approx(1e-4, rel=1e-12), pytest.approx(0.02, rel=1e-12), 1000)
    for index, value in ((0, 0.9999), (1, 0.999780092), (499, 0.0785872429), (999, 4.03582977e-05)):
        assert s.alpha_bar[index] == pytest.approx(value, rel=1e-8)
    for index, value in ((0, -9.81672514), (1, -9.81672514), (999, -3.91202383)):
        assert s.posterior_log_variance[index] == pytest.approx(value, rel=1e-8)
    assert math.log(s.betas[0]) == pytest.approx(-9.21034037, rel=1e-8)
    assert math.log(s.betas[999]) == pytest.approx(-3.91202301, rel=1e-8)
    of_x0, of_xt = s.posterior_coefficients
    assert (of_x0[1], of_xt[1]) == (pytest.approx(0.5452915, abs=5e-8), pytest.approx(0.4547085, abs=5e-8))
    assert (of_x0[999], of_xt[999]) == (pytest.approx(1.2835e-4, abs=5e-9), pytest.approx(0.98994868, abs=5e-9))


@pytest.mark.parametrize("steps", [2, 10, 100, 4000])
def test_shorter_and_longer_schedules_add_about_the_same_noise(steps: int) -> None:
    s = DDPM.linear(steps)
    assert (s.betas[0], s.betas[-1]) == (pytest.approx(0.1 / steps), pytest.approx(20 / steps))
    if steps >= 100:
        assert math.log(s.alpha_bar[-1]) == pytest.approx(math.log(DDPM_1000.alpha_bar[-1]), rel=0.15)


def test_tables_are_float64_until_gathered() -> None:
    s = DDPM_1000
    assert s.alpha_bar.dtype == s.posterior_variance.dtype == np.float64
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        values = gather(torch.from_numpy(s.alpha_bar), torch.tensor([0, 999]), torch.zeros(2, 3, 4, 4, dtype=dtype))
        assert values.dtype == expected
        assert values.shape == (2, 1, 1, 1)
        assert values.flatten().tolist() == pytest.approx([0.9999, 4.03582977e-05], rel=1e-7)


@given(st.integers(0, 999))
def test_signal_and_noise_keep_unit_variance(t: int) -> None:
    alpha, sigma = DDPM_1000.alpha_sigma(torch.tensor([t]), torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    assert (alpha**2 + sigma**2).item() == pytest.approx(1, abs=1e-12)


def test_posterior_is_bayes_rule() -> None:
    """1 / var = (1 - beta) / beta + 1 / (1 - alpha_bar_prev), by multiplying the two Gaussians."""
    s = DDPM_1000
    for t in (1, 2, 500, 999):
        precision = (1 - s.betas[t]) / s.betas[t] + 1 / (1 - s.alpha_bar_prev[t])
        assert s.posterior_variance[t] == pytest.approx(1 / precision, rel=1e-9)
        of_x0, of_xt = (table[t] for table in s.posterior_coefficients)
        assert of_x0 == pytest.approx(np.sqrt(s.alpha_bar_prev[t]) / (1 - s.alpha_bar_prev[t]) / precision, rel=1e-9)
        assert of_xt == pytest.approx(np.sqrt(1 - s.betas[t]) / s.betas[t] / precision, rel=1e-9)


# ---- respacing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "length", "head", "tail", "last_beta"),
    [
        ("250", 250, [0, 4, 8, 12, 16, 20], [987, 991, 995, 999], 0.0775193),
        (50, 50, [0, 20, 41, 61, 82, 102], [938, 958, 979, 999], 0.329809),
        ("10", 10, [0, 111], [999], 0.87979),
        ("ddim50", 50, [0, 20], [980], None),
        ("ddim25", 25, [0, 40], [960], None),
        (1, 1, [0], [0], None),
        (2, 2, [0, 999], [0, 999], None),
    ],
)
def test_respacing_keeps_the_steps_of_the_reference(
    sections: int | str, length: int, head: list[int], tail: list[int], last_beta: float | None
) -> None:
    kept = DDPM_1000.respaced(sections)
    assert len(kept) == length
    assert kept.timesteps[: len(head)].tolist() == head
    assert kept.timesteps[-len(tail) :].tolist() == tail
    if last_beta is not None:
        assert kept.betas[-1] == pytest.approx(last_beta, rel=1e-5)


@given(st.integers(1, 1000))
def test_any_count_of_steps_is_kept_with_their_alpha_bar(count: int) -> None:
    kept = DDPM_1000.respaced(count)
    assert len(kept) == len(set(kept.timesteps.tolist())) == count
    assert kept.timesteps[0] == 0
    assert count == 1 or kept.timesteps[-1] == 999
    np.testing.assert_allclose(kept.alpha_bar, DDPM_1000.alpha_bar[kept.timesteps], rtol=1e-10)


def test_sections_split_the_schedule_into_equal_parts() -> None:
    """10 steps in 3 parts are 4, 3 and 3: the first take what is left over."""
    assert DDPM.linear(10).respaced("2,1,3").timesteps.tolist() == [0, 3, 4, 7, 8, 9]
    kept = DDPM_1000.respaced("10,10,20,60").timesteps
    assert [int(((kept >= low) & (kept < low + 250)).sum()) for low in (0, 250, 500, 750)] == [10, 10, 20, 60]


@pytest.mark.parametrize("sections", ["", 1000, "1000"])
def test_respacing_to_all_steps_is_the_schedule_itself(sections: int | str) -> None:
    assert DDPM_1000.respaced(sections) is DDPM_1000


def test_respacing_twice_remembers_the_training_index() -> None:
    twice = DDPM_1000.respaced(100).respaced(10)
    assert twice.train_steps == 1000
    assert set(twice.timesteps) <= set(DDPM_1000.respaced(100).timesteps)
    np.testing.assert_allclose(twice.alpha_bar, DDPM_1000.alpha_bar[twice.timesteps], rtol=1e-10)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (0, "give a count"),
        (-5, "give a count"),
        ("²", "give a count"),
        ("ten", "give a count"),
        ("10,", "give a count"),
        ("5.5", "give a count"),
        ("ddim", "give a count"),
        ("ddimx", "give a count"),
        ("10 20", "give a count"),
        (1001, "a section of 1000 steps cannot give 1001"),
        ("300,10,10,10", "a section of 250 steps cannot give 300"),
        ("ddim999", "no whole stride takes exactly 999 of 1000 steps"),
        ("ddim0", "no whole stride"),
        ("ddim2000", "no whole stride"),
    ],
)
def test_impossible_respacing_is_a_one_line_error(sections: int | str, said: str, one_line: Callable) -> None:
    with pytest.raises(UserError, match=said) as caught:
        DDPM_1000.respaced(sections)
    assert str(sections) in one_line(caught.value)


# ---- time ------------------------------------------------------------------------------------------------------------


def test_network_gets_the_training_index_under_respacing() -> None:
    kept, t = DDPM_1000.respaced(10), torch.tensor([0, 1, 9])
    assert kept.network_time(t, "index").tolist() == [0, 111, 999]
    assert kept.network_time(t, "index").dtype == torch.int64
    assert kept.network_time(t, "unit").tolist() == pytest.approx([0, 0.111, 0.999])
    ratio = np.sqrt(1 / DDPM_1000.alpha_bar[[0, 111, 999]] - 1)
    assert kept.network_time(t, "sigma").tolist() == pytest.approx(ratio.tolist(), rel=1e-6)
    assert kept.fraction(t).tolist() == pytest.approx([0, 111 / 999, 1])


def test_flow_runs_from_data_to_noise() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    alpha, sigma = Flow().alpha_sigma(t, torch.zeros(3, 2, 4, 4))
    assert alpha.shape == (3, 1, 1, 1)
    assert (alpha.flatten().tolist(), sigma.flatten().tolist()) == ([1, 0.75, 0], [0, 0.25, 1])
    assert Flow().network_time(t, "index").tolist() == [0, 250, 1000]
    assert Flow().network_time(t, "unit").tolist() == t.tolist()
    assert Flow().network_time(t, "sigma")[1].item() == pytest.approx(1 / 3)
    assert Flow().network_time(t, "sigma").isfinite().all()
    assert Flow().fraction(t).tolist() == t.tolist()


def test_path_of_sines_and_cosines_keeps_the_variance() -> None:
    flow, t = Flow("gvp"), torch.tensor([0.0, 1 / 3, 1.0], dtype=torch.float64)
    alpha, sigma = (scale.flatten() for scale in flow.alpha_sigma(t, torch.zeros(3, 2, 4, 4)))
    assert alpha.tolist() == pytest.approx([1, 3**0.5 / 2, 0], abs=1e-7)
    assert sigma.tolist() == pytest.approx([0, 0.5, 1], abs=1e-7)
    assert flow.network_time(t, "sigma")[1].item() == pytest.approx(3**-0.5)
    assert flow.network_time(t, "sigma").isfinite().all()
    assert flow.network_time(t, "index").tolist() == Flow().network_time(t, "index").tolist()


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_paths_meet_at_the_same_ratio_of_noise_to_signal(sigma: float) -> None:
    """Scaled, a point of the linear path is one of the other."""
    assert Flow().from_linear(sigma) == (sigma, 1.0)
    time, scale = Flow("gvp").from_linear(sigma)
    alpha, noise = Flow("gvp").alpha_sigma(*torch.tensor([[time], [0]], dtype=torch.float64))
    assert (alpha.item(), noise.item()) == pytest.approx((scale * (1 - sigma), scale * sigma), abs=1e-12)


@pytest.mark.parametrize(("schedule", "top"), [(DDPM.linear(50), 50), (Flow(), 1)], ids=["ddpm", "flow"])
def test_training_times_are_uniform(schedule: DDPM | Flow, top: int) -> None:
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([schedule.draw(generator) for _ in range(20_000)]).double()
    assert 0 <= times.min() <= times.max() < top
    counts = torch.histc(times, bins=50, min=0, max=top)
    chi_square = ((counts - 400) ** 2 / 400).sum().item()
    assert 49 - 4 * math.sqrt(98) < chi_square < 49 + 4 * math.sqrt(98)
