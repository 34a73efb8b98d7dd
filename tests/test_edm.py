"""EDM: preconditioned losses and noise levels by their formulas, and a run from training to scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import udit
from conftest import Told, succeeds
from gaussian import Gaussian
from runs import RECIPE, train
from udit.config.diffusion import EDMConfig
from udit.config.files import load_run
from udit.diffusion.denoise import Denoiser
from udit.diffusion.edm import Preconditioned, WeightedLoss
from udit.diffusion.guidance import Guided
from udit.diffusion.objective import draw
from udit.diffusion.sample import sample
from udit.diffusion.schedule import DDPM, EDM, Flow
from udit.errors import UserError

SIGMA = torch.tensor([0.05, 0.5, 7.0], dtype=torch.float64)


def says(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """Some network."""
    return torch.sin(3 * x + t.view(-1, 1, 1, 1))


def losses(weighting: str, backbone: Callable[..., Tensor] = says) -> tuple[Tensor, Tensor, Tensor]:
    x0 = Gaussian(0.1, 0.5).draw(3, 2, 4, 4)
    noise = Gaussian(0.0, 1.0).draw(3, 2, 4, 4, seed=1)
    denoiser = Denoiser(Preconditioned(backbone), EDM(), "x0", time="sigma")
    return WeightedLoss(0.5, weighting)(denoiser, x0, SIGMA, noise).loss, x0, noise  # type: ignore[arg-type]


def test_edm_weighs_the_network_s_own_error_alike_at_every_level() -> None:
    """Karras et al. 2022, Eq. 8: lambda c_out**2 is 1."""
    loss, x0, noise = losses("edm")
    s = SIGMA.view(-1, 1, 1, 1)
    x, variance = x0 + s * noise, s**2 + 0.25
    target = (x0 - 0.25 / variance * x) / (s * 0.5 / variance.sqrt())
    expected = (says(x / variance.sqrt(), SIGMA) - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)


def test_soft_min_snr_divides_by_the_total_variance() -> None:
    edm, soft = losses("edm")[0], losses("soft-min-snr")[0]
    torch.testing.assert_close(soft / edm, (0.5 * SIGMA / (SIGMA**2 + 0.25)) ** 2)


def test_training_levels_are_log_normal() -> None:
    keys = [(i,) for i in range(4000)]
    logs = draw(EDM(), (1, 1, 1), 0, "train", keys).t.double().log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(4000))
    assert logs.std().item() == pytest.approx(1.2, rel=4 / math.sqrt(8000))


def test_ladder_is_the_paper_s() -> None:
    levels = EDM().ladder(18)
    assert (levels[0], levels[-2], levels[-1]) == (pytest.approx(80.0), pytest.approx(0.002), 0.0)
    roots = levels[:-1] ** (1 / 7)
    assert roots[1:] - roots[:-1] == pytest.approx([(0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17] * 17)
    assert EDM().ladder(1).tolist() == [pytest.approx(80.0), 0.0]
    times = torch.tensor([0.0, 0.002, 80.0, 100.0], dtype=torch.float64)
    assert EDM().fraction(times).tolist() == pytest.approx([0, 0, 1, 1])


def test_networks_of_other_units_hear_the_flow_s_time_of_the_same_ratio() -> None:
    sigma = torch.tensor([0.25, 1.0, 3.0])
    assert EDM().network_time(sigma, "unit").tolist() == pytest.approx([0.2, 0.5, 0.75])
    assert EDM().network_time(sigma, "index").tolist() == pytest.approx([200, 500, 750])
    flow = Flow()
    torch.testing.assert_close(flow.network_time(EDM().network_time(sigma, "unit"), "sigma"), sigma)


def test_guidance_steers_the_guess_of_x0() -> None:
    denoiser = Denoiser(
        Preconditioned(lambda x, t, y=None: 0 * x + y.view(-1, 1, 1, 1)), EDM(), "x0", null_label=9, num_classes=9
    )
    x, t, y = torch.randn(2, 1, 2, 2), torch.tensor([0.3, 4.0]), torch.tensor([1, 4])
    cond, null = denoiser(x, t, y).x0, denoiser(x, t, torch.full_like(y, 9)).x0
    torch.testing.assert_close(Guided(denoiser, 3.0)(x, t, y).x0, null + 3 * (cond - null))


def test_run_trains_samples_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ["model=HDiT-tiny", "model.mapping.width=8", "diffusion.kind=edm", f"out={out}", "sampling.steps=3"]
    words += ["training.steps=3", "training.batch_size=6", "evaluation.judge_steps=20"]
    assert "finished: 3 steps" in succeeds(capsys, "train", "digits", *words, "--no-progress")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert math.isfinite(lines[-1]["val_loss"])
    system = udit.load(out / "model")
    assert isinstance(system.config.diffusion, EDMConfig)
    alone, together = (torch.cat(list(system.generate(seeds, [3] * len(seeds)))) for seeds in ([5], [4, 5, 6]))
    assert (alone[0].int() - together[1].int()).abs().max() <= 1
    cached = system.config.sampling.replace(cache=2)
    assert not torch.equal(next(system.generate([5], [3], sampling=cached)), alone)
    succeeds(capsys, "eval", str(out), "--n", "20", "--no-progress")
    protocol = json.loads((out / "evaluation" / "metrics.json").read_text())["protocol"]
    assert protocol["sampling"]["sampler"] == "edm-heun"


def test_any_network_trains_on_noise_levels(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, "diffusion={kind: edm}", "sampling.sampler=edm-euler", "training.steps=2", "model.learn_sigma=false")
    assert udit.load(out).denoiser.time == "sigma"


SAID = {
    "levels upside down": (["diffusion.sigma_min=90"], "sigma_min is 90 and sigma_max 80"),
    "sampler": (["sampling.sampler=ddim"], "'ddim'; a edm model takes edm-heun, edm-euler"),
    "variance": (["model.learn_sigma=true"], "EDM learns no variance"),
    "weighting": (["diffusion.weighting=snr"], "diffusion.weighting is 'snr'"),
    "reversed": (["model=SiT-tiny"], "diffusion.kind is edm and the model predicts a reversed flow"),
    "cache": (["sampling.cache=2", "sampling.refresh=[0]"], "cache is 2 and refresh names evaluations"),
    "text": (["model.num_classes=0", "model.context={tokens: 3, width: 4}"], "the data gives labels"),
}


@pytest.mark.parametrize(("words", "said"), SAID.values(), ids=SAID)
def test_misfits_are_told_in_one_line(words: list[str], said: str, told: Told) -> None:
    assert said in told("train", "digits", "diffusion.kind=edm", *words, "sampling.guidance=1", "--dry-run")


@pytest.mark.parametrize(
    ("schedule", "sampler", "said"),
    [
        (EDM(), "ddim", "an EDM model has no discrete steps"),
        (EDM(), "dpmpp", "dpmpp does not know EDM's noise levels; use edm-heun"),
        (Flow(), "edm-heun", "trained with flow matching; use flow-euler"),
        (DDPM.linear(), "edm-euler", "trained with DDPM; use ddim"),
    ],
)
def test_samplers_of_other_schedules_are_told(
    schedule: DDPM | Flow | EDM, sampler: str, said: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as caught:
        list(sample(Gaussian().denoiser(schedule), torch.zeros(1, 1, 2, 2), scheduler=sampler, steps=4))
    assert said in one_line(caught.value)


def test_recipe_of_the_tests_is_no_edm() -> None:
    """So that the tests above change what they mean to."""
    assert load_run(RECIPE).diffusion.kind == "ddpm"
