"""EDM: preconditioned losses and noise levels by their formulas, and a run from training to scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import udit
from conftest import ErrorOf, perturb, succeeds
from gaussian import Gaussian
from runs import RECIPE, train
from udit.assemble import System
from udit.diffusion.config import EDMConfig, SamplingConfig
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.edm import EDM, Preconditioned, WeightedLoss
from udit.diffusion.flow import Flow
from udit.diffusion.guidance import Guided
from udit.diffusion.objective import draw
from udit.diffusion.sample import sample
from udit.errors import UserError
from udit.images import read_pixels
from udit.run.recipes import load_run
from udit.run.system import SystemConfig

SIGMA = torch.tensor([0.05, 0.5, 7.0], dtype=torch.float64)


def says(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """Some network."""
    return torch.sin(3 * x + t.view(-1, 1, 1, 1))


def losses(weighting: str, backbone: Callable[..., Tensor] = says) -> tuple[Tensor, Tensor, Tensor]:
    x0 = Gaussian(0.1, 0.5).draw(3, 2, 4, 4)
    noise = Gaussian(0.0, 1.0).draw(3, 2, 4, 4, seed=1)
    denoiser = Denoiser(Preconditioned(backbone), EDM(), "x0", time="sigma")
    return WeightedLoss(0.5, weighting)(denoiser, x0, SIGMA, noise).loss, x0, noise  # type: ignore[arg-type]


def test_edm_weighs_the_network_s_own_error_equally_at_every_level() -> None:
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


def test_cosine_levels_are_hoogeboom_s_in_logarithms_of_the_ratio() -> None:
    """logsnr = -2 log tan(angle), shifted by 2 log r, the ends kept; then t of the one and 1 - t of the other."""
    schedule = EDM(0.01, 160.0, resolutions=(0.125, 1.0), sigma_data=0.5)
    ends = [-2 * math.log(level / 0.5) for level in (0.01, 160.0)]
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        mixed = 0.0
        for r, share in ((0.125, t), (1.0, 1 - t)):
            shift = 2 * math.log(r)
            low, high = (math.atan(math.exp(-(end - shift) / 2)) for end in ends)
            mixed += share * (-2 * math.log(math.tan(low + t * (high - low))) + shift)
        sigma = schedule.interpolated_cosine(torch.tensor(t, dtype=torch.float64)).item()
        assert sigma == pytest.approx(0.5 * math.exp(-mixed / 2), rel=1e-5)
    ends_of = schedule.interpolated_cosine(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends_of.tolist() == pytest.approx([0.01, 160.0], rel=1e-5)


def test_training_levels_follow_the_interpolated_cosine() -> None:
    schedule = EDMConfig(density="cosine-interpolated", sigma_min=0.01, sigma_max=160).build()
    drawn = draw(schedule, (1, 1, 1), 0, "train", [(i,) for i in range(2000)]).t
    middle = schedule.interpolated_cosine(torch.tensor(0.5, dtype=torch.float64))
    assert (drawn < middle).double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    assert 0.01 <= drawn.min() <= drawn.max() <= 160.1
    assert drawn.dtype == torch.float32


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


@pytest.fixture(scope="module")
def hourglass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the EDM objective whose weights are noise: its images show every difference."""
    network = perturb(udit.build("HDiT-tiny"), 0.05)
    how = SamplingConfig(sampler="edm-heun", steps=5, guidance=2)
    config = SystemConfig(model=network.config, diffusion=EDMConfig(), sampling=how)
    folder = tmp_path_factory.mktemp("edm") / "model"
    udit.save(System(config, network), folder)
    return folder


def generated(folder: Path, batch_size: int = 3, **how: Any) -> Tensor:
    system = udit.load(folder)
    sampling = system.config.sampling.replace(**how)
    return torch.cat(list(system.generate([3, 4, 5], [1, 7, 7], sampling=sampling, batch_size=batch_size))).int()


def test_seeds_give_the_same_images_at_any_batch_size(hourglass: Path) -> None:
    alone, together = generated(hourglass, 1), generated(hourglass, 3)
    assert together.float().std() > 20, "images that could show a difference"
    assert (alone - together).abs().max() <= 1


def test_guidance_steps_sampler_and_cache_change_the_images(hourglass: Path) -> None:
    plain = generated(hourglass)
    for change in ({"guidance": 4}, {"steps": 9}, {"sampler": "edm-euler"}, {"cache": 2}):
        assert (generated(hourglass, **change) - plain).abs().max() > 1, change


def test_guidance_acts_within_its_interval_of_the_ladder(hourglass: Path) -> None:
    """Outside it the scale is not used: any scale gives the same bits, and those of no guidance to rounding.

    Without guidance conditions are computed without the null label, in another batch.
    """
    unguided = generated(hourglass, guidance=1)
    # five evaluations stand at 1, at 0.5 twice and at 0 twice of the ladder
    idle = generated(hourglass, guidance=4, guidance_interval=(0.6, 0.9))
    assert torch.equal(generated(hourglass, guidance=9, guidance_interval=(0.6, 0.9)), idle)
    assert (idle - unguided).abs().max() <= 1
    assert (generated(hourglass, guidance=4, guidance_interval=(0.4, 0.6)) - unguided).abs().max() > 1


def test_command_draws_what_python_draws(hourglass: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("1", "3"):
        words = ["--seeds", "3-5", "--labels", "1,7,7", "--batch-size", size, "--out", str(tmp_path / size)]
        succeeds(capsys, "sample", str(hourglass), *words, "--no-progress")
        drawn = torch.stack([read_pixels(path) for path in sorted((tmp_path / size).glob("0*.png"))]).int()
        assert (drawn - generated(hourglass)).abs().max() <= 1


def test_sampling_settings_that_do_not_fit_are_one_line_errors(
    hourglass: Path, tmp_path: Path, error_of: ErrorOf
) -> None:
    def line(model: Path, *words: str) -> str:
        return error_of("sample", str(model), *words, "--out", str(tmp_path / "out"), "--no-progress")

    assert "ddim does not fit a model that was trained with EDM; use edm-heun" in line(hourglass, "--sampler", "ddim")
    assert "flow-euler does not fit a model that was trained with EDM" in line(hourglass, "--sampler", "flow-euler")
    assert "sampler is 'edm-huen'" in line(hourglass, "--sampler", "edm-huen")
    network = udit.build("HDiT-tiny", num_classes=0)
    config = SystemConfig(model=network.config, diffusion=EDMConfig(), sampling=SamplingConfig(sampler="edm-heun"))
    udit.save(System(config, network), tmp_path / "plain")
    assert "guidance 2 needs a null label" in line(tmp_path / "plain", "--guidance", "2")
    assert "labels were given to an unconditional model" in line(tmp_path / "plain", "--labels", "1")
    assert not list(tmp_path.glob("out/*.png"))


SAID = {
    "levels upside down": (["diffusion.sigma_min=90"], "sigma_min is 90 and sigma_max 80"),
    "sampler": (["sampling.sampler=ddim"], "'ddim'; a edm model takes edm-heun, edm-euler"),
    "variance": (["model.learn_sigma=true"], "EDM learns no variance"),
    "weighting": (["diffusion.weighting=snr"], "diffusion.weighting is 'snr'"),
    "density": (["diffusion.density=cosine"], "diffusion.density is 'cosine'"),
    "idle mean": (["diffusion.density=cosine-interpolated", "diffusion.log_mean=0"], "log_mean is not used by density"),
    "idle sides": (["diffusion.resolutions=[0.5, 1]"], "resolutions is not used by density log-normal"),
    "reversed": (["model=SiT-tiny"], "diffusion.kind is edm and the model predicts a reversed flow"),
    "cache": (["sampling.cache=2", "sampling.refresh=[0]"], "cache is 2 and refresh names evaluations"),
    "text": (["model.num_classes=0", "model.context={tokens: 3, width: 4}"], "the data gives labels"),
}


@pytest.mark.parametrize(("words", "said"), SAID.values(), ids=SAID)
def test_settings_that_do_not_fit_are_one_line_errors(words: list[str], said: str, error_of: ErrorOf) -> None:
    assert said in error_of("train", "digits", "diffusion.kind=edm", *words, "sampling.guidance=1", "--dry-run")


@pytest.mark.parametrize(
    ("schedule", "sampler", "said"),
    [
        (EDM(), "ddim", "trained with EDM; use edm-heun"),
        (EDM(), "dpmpp", "dpmpp does not fit a model that was trained with EDM; use edm-heun"),
        (Flow(), "edm-heun", "trained with flow matching; use flow-euler"),
        (DDPM.linear(), "edm-euler", "trained with DDPM; use ddim"),
    ],
)
def test_samplers_of_other_schedules_are_refused(
    schedule: DDPM | Flow | EDM, sampler: str, said: str, one_line: Callable[[BaseException], str]
) -> None:
    with pytest.raises(UserError) as caught:
        list(sample(Gaussian().denoiser(schedule), torch.zeros(1, 1, 2, 2), sampler=sampler, steps=4))
    assert said in one_line(caught.value)


def test_recipe_of_the_tests_is_no_edm() -> None:
    """Shows that the tests above change the intended values."""
    assert load_run(RECIPE).diffusion.kind == "ddpm"
