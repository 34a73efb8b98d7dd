"""``udit tune`` and ``udit sample --quality``: settings from the run's quality.json, or from a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import udit
from conftest import TINY, ErrorOf, perturb, succeeds
from runs import image_folder, train
from udit.assemble import System
from udit.diffusion.config import DDPMConfig, EDMConfig, FlowConfig, SamplingConfig
from udit.diffusion.few_step_config import ConsistencyConfig, MeanFlowConfig
from udit.diffusion.process_config import ProcessConfig
from udit.diffusion.sample import make_sampler
from udit.errors import UserError
from udit.images import read_settings
from udit.run.system import SystemConfig
from udit.store import read_run_config
from udit.tuning import search
from udit.tuning.levels import frozen
from udit.tuning.quality import FILE, TUNED, Quality, Scored, default, fastest

LEVELS = ("draft", "good", "best")


def scored(distance: float, seconds: float, agreement: float = 0.9, **how: object) -> Scored:
    ends = {"distance_interval": (0, 1), "agreement_interval": (0, 1)}
    sampling = SamplingConfig().replace(**how)
    return Scored(sampling=sampling, distance=distance, agreement=agreement, seconds=seconds, **ends)


def test_quickest_within_a_loss_of_distance_and_of_agreement_is_picked() -> None:
    best, near, far = scored(1.0, 9), scored(1.02, 5), scored(1.3, 1)
    wrong = scored(0.99, 2, agreement=0.8)
    tried = (best, near, far, wrong)
    assert fastest(tried, 0.0, best) is best
    assert fastest(tried, 0.02, best) is near
    assert fastest(tried, 0.1, best) is near
    assert fastest(tried, 0.5, best) is far
    assert fastest((best, wrong), 0.15, best) is wrong


@pytest.mark.parametrize(
    "diffusion",
    [FlowConfig(), DDPMConfig(), DDPMConfig(steps=7), EDMConfig(), MeanFlowConfig(), ConsistencyConfig()],
    ids=str,
)
def test_table_knows_every_noising_process_and_keeps_the_guidance(
    diffusion: ProcessConfig,
) -> None:
    own = SamplingConfig(guidance=3.0, guidance_channels=1, guidance_interval=(0.1, 0.7), cache=4, clip=True)
    steps = []
    for level in LEVELS:
        how = default(level, own, diffusion)
        assert how.sampler in diffusion.samplers()
        make_sampler(how.sampler, eta=how.eta, clip=how.clip)
        assert (how.guidance, how.guidance_channels, how.guidance_interval) == (3.0, 1, (0.1, 0.7))
        assert (how.cache, how.clip) == (1, False)
        steps.append(how.steps)
    assert steps == sorted(steps)
    assert steps[-1] <= getattr(diffusion, "steps", 100)


def test_every_key_of_guidance_is_kept_as_far_as_the_sampler_takes_it() -> None:
    apg = {"guidance_kind": "apg", "guidance_norm": 2.0, "guidance_eta": 0.1, "guidance_momentum": 0.0}
    own = SamplingConfig(guidance=3.0, guidance_levels=(0.1, 2.0), guidance_rescale=0.7, **apg)
    for level in LEVELS:
        how = default(level, own, DDPMConfig())
        assert how.guidance_for("ddim") == own.guidance_for("ddim")
    assert {how.guidance_interval for how in search.candidates(own, ["ddim"], [5])} == {(0.0, 1.0)}
    zero = SamplingConfig(sampler="flow-heun", guidance=3.0, guidance_kind="cfg-zero", guidance_zero_init=2)
    kept = {how.sampler: how.zero_init for how in search.candidates(zero, FlowConfig.few_step_samplers, [5])}
    assert kept == {"dpmpp": 0, "unipc": 0, "flow-heun": 2}


def test_few_long_steps_are_neither_cached_nor_many(monkeypatch: pytest.MonkeyPatch) -> None:
    network = udit.build("U-DiT-S", **TINY | {"learn_sigma": False, "second_time": True})
    sampling = SamplingConfig(sampler="flow-average", steps=1)
    system = System(SystemConfig(model=network.config, diffusion=MeanFlowConfig(), sampling=sampling), network)
    scorer = search.Scorer(system, None, None, 20, 20)  # type: ignore[arg-type]
    monkeypatch.setattr(search.Scorer, "measure", lambda self, how: scored(how.steps, how.steps, **how.model_dump()))
    monkeypatch.setattr(search.Scorer, "protocol", lambda self: {})
    found, _ = search.search(scorer, 1)
    assert [each.sampling.steps for each in found.tried] == [1, 2, 4]


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False}), 0.05)
    how = SamplingConfig(sampler="flow-euler", steps=3, guidance=1.5)
    config = SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=how)
    folder = tmp_path_factory.mktemp("model") / "model"
    udit.save(System(config, network), folder)
    return folder


def drawn(capsys: pytest.CaptureFixture[str], model: Path, out: Path, *words: str) -> dict:
    """The sampling settings that an image carries."""
    succeeds(capsys, "sample", str(model), "--n", "1", "--out", str(out), "--no-progress", *words)
    return read_settings(out / "000000.png")["sampling"]


def write(folder: Path, weights: str) -> None:
    ways = {level: scored(1, 1, sampler="unipc", steps=2 + i, refresh=(0, 1)) for i, level in enumerate(LEVELS)}
    Quality(weights=weights, step=9, protocol={}, tried=(), **ways).write(folder / FILE)


def test_untuned_model_is_drawn_from_by_the_table(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    how = drawn(capsys, model, tmp_path, "--quality", "draft")
    assert (how["sampler"], how["steps"]) == FlowConfig.quality["draft"]
    assert how["guidance"] == 1.5
    assert "no quality.json beside" in caplog.text


def test_tuned_model_is_drawn_from_as_it_was_tuned(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tuned = Path(shutil.copytree(model, tmp_path / "model"))
    write(tuned, udit.load(tuned).fingerprint)
    how = drawn(capsys, tuned, tmp_path / "good", "--quality", "good")
    assert (how["sampler"], how["steps"], how["refresh"]) == ("unipc", 3, [0, 1])
    assert "other weights" not in caplog.text
    write(tuned, "0123")
    drawn(capsys, tuned, tmp_path / "other", "--quality", "best")
    assert "quality.json was tuned for other weights, of step 9" in caplog.text


def test_mistakes_are_one_line_errors(model: Path, tmp_path: Path, error_of: ErrorOf) -> None:
    def line(*words: str) -> str:
        return error_of("sample", str(model), "--out", str(tmp_path / "out"), "--no-progress", *words)

    assert "takes draft, good or best. Did you mean best?" in line("--quality", "beste")
    assert "--steps is given and --quality good sets it" in line("--quality", "good", "--steps", "4")
    assert "--guidance-channels is given" in line("--quality", "good", "--guidance-channels", "1")
    broken = Path(shutil.copytree(model, tmp_path / "model"))
    for text in ("{", '{"format": 2}'):
        (broken / FILE).write_text(text)
        words = ("sample", str(broken), "--quality", "best", "--out", str(tmp_path / "out"), "--no-progress")
        assert "write it again with `udit tune`" in error_of(*words)
    assert "needs at least 20 images" in error_of("tune", str(model), "--n", "3")
    assert "is no run folder" in error_of("tune", str(model))


@pytest.mark.slow
def test_a_run_is_tuned_and_drawn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = [
        *image_folder(tmp_path / "data"),
        "diffusion={kind: flow}",
        "training.steps=3",
        "evaluation.judge_steps=2",
    ]
    train(run, *words, "model.depths=[1,1,1]", "sampling={sampler: flow-euler, steps: 2, guidance: 2.0}")
    for name, value in {"STEPS": (2, 4), "RESAMPLES": 4, "WATCHED": 2}.items():
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(FlowConfig, "few_step_samplers", ("dpmpp",))
    said = succeeds(capsys, "tune", str(run), "--n", "20")
    assert said.count("dpmpp 2") >= 2
    found = Quality.read(run)
    assert found is not None
    plain = [each for each in found.tried if not each.sampling.refresh]
    assert {(each.sampling.steps, each.sampling.guidance_interval) for each in plain} == {
        (steps, interval) for steps in (2, 4) for interval in ((0.0, 1.0), search.INTERVAL)
    }
    assert any(each.sampling.refresh for each in found.tried)
    best = min(plain, key=lambda each: each.distance)
    assert found.best.within(0.02, best)
    assert found.draft.within(0.5, best)
    assert found.draft.seconds <= found.good.seconds <= found.best.seconds
    assert json.loads((run / FILE).read_text())["protocol"]["pictures"] == 20
    how = drawn(capsys, run, tmp_path / "out", "--quality", "best")
    assert how == found.best.sampling.model_dump(mode="json")
    assert read_run_config(run).sampling.steps == 2


def test_a_frozen_average_is_drawn_from_and_scored(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    """A run whose quality.json names another average: its folder gives the weights, and its settings are taken."""
    run = Path(shutil.copytree(model, tmp_path / "model"))
    other = udit.load(model)
    with torch.no_grad():
        for value in other.backbone.parameters():
            value.add_(0.01)
    ways = {level: scored(1, 1, sampler="unipc", steps=2 + i) for i, level in enumerate(LEVELS)}
    found = Quality(weights=other.fingerprint, step=9, protocol={}, tried=(), sigma_rel=0.05, **ways)
    found.write(run / FILE)
    words = ("sample", str(run), "--quality", "good", "--n", "1", "--out", str(tmp_path / "out"), "--no-progress")
    assert "is missing, for which quality.json was tuned" in error_of(*words)
    udit.save(other, run / TUNED)
    found.write(run / TUNED / FILE)
    succeeds(capsys, *words)
    settings = read_settings(tmp_path / "out" / "000000.png")
    assert settings is not None
    assert settings["model"] == other.fingerprint
    assert settings["sampling"]["steps"] == 3
    folder, how = frozen(run, "best")
    assert folder == run / TUNED
    assert (how["sampler"], how["steps"]) == ("unipc", 4)
    with pytest.raises(UserError, match=r"has no quality\.json, by which --quality best is scored"):
        frozen(model, "best")
    assert "--steps is given and --quality best sets it" in error_of(
        "eval", str(run), "--quality", "best", "--steps", "3"
    )
