"""Kinds of guidance of whole systems: settings and files, a weaker model, step caching, exported graphs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import udit
from conftest import TINY, ErrorOf, perturb, succeeds
from runs import train
from udit.assemble import System
from udit.diffusion.calibrate import watch
from udit.diffusion.combine import APG, CFG, CFGZero
from udit.diffusion.config import DDPMConfig, EDMConfig, FlowConfig, SamplingConfig
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import SeededNoise, sample
from udit.errors import UserError
from udit.images import read_settings
from udit.interpolation import Between
from udit.run.system import SystemConfig

OneLine = Callable[[BaseException], str]
Process = FlowConfig | DDPMConfig | EDMConfig
SEEDS, LABELS = [3, 5, 8], [1, 4, 0]
KINDS: dict[str, dict] = {
    "cfg": {},
    "rescale": {"guidance_rescale": 0.7},
    "apg": {"guidance_kind": "apg", "guidance_norm": 2.0, "guidance_eta": 0.1},
    "cfg-zero": {"guidance_kind": "cfg-zero"},
    "levels": {"guidance_levels": (0.1, 5.0)},
}


@functools.cache
def network_of(seed: int) -> nn.Module:
    return perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False}), 0.05, seed).eval()


def system(diffusion: Process | None = None, seed: int = 0, **how: object) -> System:
    network = network_of(seed)
    diffusion = diffusion or FlowConfig()
    sampling = SamplingConfig(sampler=diffusion.samplers()[0], steps=5, guidance=3.0).replace(**how)
    return System(SystemConfig(model=network.config, diffusion=diffusion, sampling=sampling), network)


def drawn(model: System, batch_size: int = 64, **how: object) -> Tensor:
    sampling = model.config.sampling.replace(**how)
    return torch.cat(list(model.generate(SEEDS, LABELS, sampling=sampling, batch_size=batch_size))).int()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder."""
    return str(udit.save(system(), tmp_path_factory.mktemp("model") / "model"))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_are_the_denoiser_s() -> None:
    def guided(**how: object) -> Guided:
        found = system().guided(system(**how).config.sampling)
        assert isinstance(found, Guided)
        return found

    assert guided().rule == CFG()
    assert guided(**KINDS["apg"], guidance_momentum=-0.2).rule == APG(0.1, 2.0, -0.2)
    assert (guided(**KINDS["cfg-zero"]).rule, guided(**KINDS["cfg-zero"]).zero_init) == (CFGZero(), 1)
    assert guided(guidance_rescale=0.7).rescale == 0.7
    assert guided(guidance_levels=(0.5, 2.0)).levels == (0.5, 2.0)


def test_another_kind_drops_the_keys_of_the_former() -> None:
    """A model's own setting is no obstacle to trying another; what is asked for together must still fit."""
    own = SamplingConfig(guidance=3.0, **KINDS["apg"], guidance_interval=(0.2, 0.8))
    assert own.replace(guidance_kind="cfg") == SamplingConfig(guidance=3.0, guidance_interval=(0.2, 0.8))
    assert own.replace(guidance_kind="apg", steps=7).guidance_norm == 2.0
    assert own.replace(guidance_levels=(0.1, 5.0)).guidance_interval == (0.0, 1.0)
    back = own.replace(guidance_levels=(0.1, 5.0)).replace(guidance_interval=(0.3, 0.7))
    assert (back.guidance_interval, back.guidance_levels) == ((0.3, 0.7), None)
    with pytest.raises(UserError, match="guidance_norm works with guidance_kind apg"):
        own.replace(guidance_kind="cfg", guidance_norm=4.0)
    with pytest.raises(UserError, match="give one of them"):
        own.replace(guidance_levels=(0.1, 5.0), guidance_interval=(0.2, 0.8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("diffusion", [FlowConfig(), DDPMConfig(), EDMConfig()], ids=lambda config: config.kind)
def test_images_are_the_same_in_any_batch_and_not_those_of_another_kind(kind: str, diffusion: Process) -> None:
    if kind == "cfg-zero" and diffusion.kind != "flow":
        return
    model = system(diffusion, **KINDS[kind])
    together = drawn(model)
    assert (drawn(model, batch_size=1) - together).abs().max() <= 1
    if kind != "cfg":
        assert (drawn(system(diffusion)) - together).abs().max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_cached_guidance_that_is_refreshed_every_time_changes_nothing(kind: str) -> None:
    model = system(**KINDS[kind])
    plain = drawn(model)
    evaluations = tuple(range(4 if kind == "cfg-zero" else 5))  # those that the network is asked for
    assert (drawn(model, refresh=evaluations, keep_guidance=True) - plain).abs().max() <= 1
    some = drawn(model, refresh=(0, 2), keep_guidance=True)
    assert (some - plain).abs().max() > 0


def test_command_takes_every_kind_and_files_record_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    udit.save(system(), tmp_path / "model")
    words = "--guidance-kind apg --guidance-norm 2 --guidance-eta 0.1 --guidance-momentum -0.25 --guidance-rescale 0.5"
    words += " --guidance-levels 0.1,5 --n 1 --no-progress --overwrite"
    succeeds(capsys, "sample", str(tmp_path / "model"), *words.split(), "--out", str(tmp_path / "out"))
    found = read_settings(tmp_path / "out" / "000000.png")
    assert found is not None
    wanted = KINDS["apg"] | {"guidance_momentum": -0.25, "guidance_rescale": 0.5, "guidance_levels": [0.1, 5.0]}
    assert {key: found["sampling"][key] for key in wanted} == wanted
    words = "--guidance-kind cfg-zero --guidance-zero-init 2 --guidance-interval 0.2,1 --n 1 --no-progress --overwrite"
    succeeds(capsys, "sample", str(tmp_path / "model"), *words.split(), "--out", str(tmp_path / "out"))
    found = read_settings(tmp_path / "out" / "000000.png")
    assert found is not None
    assert (found["sampling"]["guidance_zero_init"], found["sampling"]["guidance_interval"]) == (2, [0.2, 1.0])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("--guidance-interval 0.2", "--guidance-interval is '0.2'; write two numbers, e.g. 0.2,0.8"),
        ("--guidance-levels a,b", "--guidance-levels is 'a,b'; write two numbers"),
        ("--guidance-interval 0.8,0.2", "it runs from the lower to the higher time"),
        ("--guidance-levels=-1,2", "guidance_levels.0 is -1.0; it must be at least 0"),
        ("--guidance-rescale 3", "--guidance-rescale is 3.0; it must be at most 1"),
        ("--guidance-norm 3", "guidance_norm works with guidance_kind apg, not with cfg"),
        ("--guidance-kind cfg-zero --sampler dpmpp", "guidance_zero_init works with the flow-euler and flow-heun"),
        ("--quality good --guidance-kind apg", "--guidance-kind is given and --quality good sets it"),
    ],
)
def test_command_refuses_settings_that_make_no_sense(
    words: str, rule: str, folder: str, tmp_path: Path, error_of: ErrorOf
) -> None:
    assert rule in error_of("sample", folder, *words.split(), "--out", str(tmp_path))


# ---- autoguidance ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("diffusion", [FlowConfig(), DDPMConfig(), EDMConfig()], ids=lambda config: config.kind)
def test_autoguided_system_compares_with_the_weaker_one(diffusion: Process) -> None:
    strong, weak = system(diffusion), system(diffusion, seed=1)
    model = strong.autoguided(weak)
    together = drawn(model)
    assert (drawn(model, batch_size=1) - together).abs().max() <= 1
    assert (drawn(strong) - together).abs().max() > 3
    noise = SeededNoise(SEEDS, (1, 8, 8))
    guided = Guided(strong.denoiser, 3.0, weak=weak.denoiser)
    options = {"sampler": strong.config.sampling.sampler, "steps": 5, "y": torch.tensor(LABELS)}
    *_, last = sample(guided, noise(0), noise=noise, **options)
    assert (strong.codec.decode(last.x).int() - together).abs().max() <= 1
    assert (drawn(model.fused()) - together).abs().max() <= 1


def test_weaker_model_has_its_own_time_and_its_own_cache() -> None:
    """A DiT whose unit of time is another guides a U-DiT; both have their deep parts cached."""
    small = {"in_channels": 1, "num_classes": 5, "input_size": 8, "width": 16, "heads": 2, "learn_sigma": False}
    network = perturb(udit.build("SiT-S/2", depth=2, **small), 0.05).eval()
    model = system()
    assert network.config.time != model.config.model.time
    weak = System(model.config.model_copy(update={"model": network.config}), network)
    autoguided = model.autoguided(weak)
    plain = drawn(autoguided)
    guided = Guided(model.denoiser, 3.0, weak=weak.denoiser)
    noise = SeededNoise(SEEDS, (1, 8, 8))
    *_, last = sample(guided, noise(0), sampler="flow-euler", steps=5, y=torch.tensor(LABELS))
    assert (model.codec.decode(last.x).int() - plain).abs().max() <= 1
    assert (drawn(autoguided, refresh=(0, 1, 2, 3, 4)) - plain).abs().max() <= 1
    assert (drawn(autoguided, refresh=(0, 3)) - plain).abs().max() > 0
    with pytest.raises(UserError, match="cache is 2 and the weaker model has another unit of time"):
        drawn(autoguided, cache=2)


def test_unconditional_models_are_autoguided_too() -> None:
    def unconditional(seed: int) -> System:
        network = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "num_classes": 0}), 0.05, seed).eval()
        sampling = SamplingConfig(steps=3, guidance=3.0)
        return System(SystemConfig(model=network.config, diffusion=DDPMConfig(), sampling=sampling), network)

    model, weak = unconditional(0), unconditional(1)
    with pytest.raises(UserError, match=r"needs a null label .*, or a weaker model \(autoguide\)"):
        list(model.generate([0]))
    guided = torch.cat(list(model.autoguided(weak).generate([0, 1]))).int()
    plain = torch.cat(list(model.generate([0, 1], sampling=SamplingConfig(steps=3)))).int()
    assert (guided - plain).abs().max() > 3


def test_weaker_systems_that_do_not_fit_are_refused(one_line: OneLine) -> None:
    model = system()
    other = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False, "num_classes": 4}))
    for weak, rule in (
        (system(DDPMConfig()), "trained with DDPM to predict eps, and the model with flow matching to predict flow"),
        (system(FlowConfig(path="gvp")), "trained with flow matching to predict gvp"),
        (System(model.config.model_copy(update={"model": other.config}), other), "another number of classes"),
        (system(), "has the same weights as the model"),
    ):
        with pytest.raises(UserError, match=rule) as caught:
            model.autoguided(weak)
        one_line(caught.value)
    with pytest.raises(UserError, match="along other noise levels than the model") as caught:
        system(DDPMConfig()).autoguided(system(DDPMConfig(betas="scaled-linear"), seed=1))
    one_line(caught.value)
    other_weights = system(EDMConfig(weighting="edm", log_mean=-0.4), seed=1)
    assert system(EDMConfig()).autoguided(other_weights).weak == other_weights, "training may differ"


def test_steps_to_cache_are_chosen_without_a_weaker_model(one_line: OneLine) -> None:
    guided = Guided(system().denoiser, 3.0, weak=system(seed=1).denoiser)
    with pytest.raises(UserError, match=r"leave the weaker model \(autoguide\) out") as caught:
        watch(guided, torch.zeros(1, 1, 8, 8), sampler="flow-euler", steps=3, y=torch.tensor([1]))
    one_line(caught.value)


def test_command_takes_a_weaker_model_and_files_name_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    strong, weak = tmp_path / "strong", tmp_path / "weak"
    udit.save(system(), strong)
    udit.save(system(seed=1), weak)
    words = ["sample", str(strong), "--n", "2", "--no-progress", "--out", str(tmp_path / "out")]
    succeeds(capsys, *words, "--autoguide", str(weak))
    found = read_settings(tmp_path / "out" / "000001.png")
    assert found is not None
    assert found["autoguide"] == udit.load(weak).fingerprint
    assert "autoguide" not in (read_settings(tmp_path / "out" / "000001.png") or {}).get("sampling", {})
    said = error_of(*words, "--overwrite", "--autoguide", str(weak), "--guidance", "1")
    assert "autoguide is given and guidance 1 compares with nothing" in said
    said = error_of(*words, "--overwrite", "--autoguide", str(weak), "--autoguide-ema", "0.05")
    assert "--autoguide and --autoguide-ema both name a weaker model" in said
    assert "no model at 'absent'" in error_of(*words, "--overwrite", "--autoguide", "absent")
    assert "is no run folder" in error_of(*words, "--overwrite", "--autoguide-ema", "0.05")


def test_run_is_guided_by_a_shorter_average_of_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    train(run, "training.steps=6", "training.posthoc_ema.every=2", "sampling.guidance=2", "sampling.steps=2")
    images = udit.generate(run, [0, 1], autoguide=0.05)
    assert images.system.weak is not None
    assert images.system.weak.fingerprint == udit.posthoc_ema(run, 0.05).system.fingerprint
    assert images.images().shape[0] == 2
    assert not caplog.records
    udit.generate(run, [0, 1], autoguide=0.004)
    assert "hardly represent an EMA of length 0.004" in caplog.text


def test_run_is_guided_by_an_earlier_checkpoint_of_itself(tmp_path: Path, one_line: OneLine) -> None:
    run = tmp_path / "run"
    train(run, "training.steps=6", "training.save_every=3", "sampling.guidance=2", "sampling.steps=2")
    early, last = (run / "checkpoints" / f"step-0000000{step}" for step in (3, 6))
    assert udit.load(last).fingerprint == udit.load(run).fingerprint
    assert udit.load(early).config.steps == 3
    images = udit.generate(run, [0, 1], autoguide=early)
    assert images.system.weak is not None
    assert images.system.weak.fingerprint == udit.load(early).fingerprint != udit.load(run).fingerprint
    file = early / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"checkpoint .*step-00000003 is damaged \(ema.safetensors has") as caught:
        udit.load(early)
    one_line(caught.value)


# ---- exported graphs -------------------------------------------------------------------------------------------------


class Exported(nn.Module):
    """Stands for a graph: called like the network, with its fingerprint, and without parts or parameters."""

    fingerprint = "0123456789abcdef"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = [network]
        self.config = network.config

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.network[0](x, t, y)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_guided_like_networks(kind: str) -> None:
    model = system(**KINDS[kind])
    graph = System(model.config, Exported(model.backbone))
    assert (drawn(graph) - drawn(model)).abs().max() <= 1
    weak = system(seed=1)
    if kind != "cfg-zero":
        assert (drawn(graph.autoguided(weak)) - drawn(model.autoguided(weak))).abs().max() <= 1


def test_graphs_take_whole_classes(one_line: OneLine) -> None:
    graph = System(system().config, Exported(system().backbone))
    for model in (graph, system(seed=1).autoguided(graph)):
        with pytest.raises(UserError, match="an exported graph takes whole classes") as caught:
            model.generate([0], [Between(1, 2, 0.5)])
        one_line(caught.value)
        with pytest.raises(UserError, match="an exported graph takes whole classes"):
            udit.generate(model, [0], [Between(1, 2, 0.5)])
