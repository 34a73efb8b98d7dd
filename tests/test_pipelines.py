"""Folders for diffusers: DiffusionPipeline loads them where udit is not, and draws the pictures that udit draws."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import udit
from conftest import ErrorOf, perturb, succeeds
from hub_stand_in import use
from hub_writes import TOKEN, taking_uploads
from udit import ops
from udit.assemble import System
from udit.convert.system import native_diffusion
from udit.data.codec_config import SpaceToDepthCodec, VAECodec
from udit.data.vae import complete
from udit.diffusion.config import DDPMConfig, FlowConfig, SamplingConfig
from udit.errors import UserError
from udit.exporting import pipelines
from udit.exporting.bundle import Bundle
from udit.exporting.pipelines import pipeline_text
from udit.exporting.program import inputs
from udit.exporting.single import Writer
from udit.models.build import build
from udit.models.catalog import CATALOG
from udit.models.config import ModelConfig
from udit.run.system import SystemConfig
from vaes import tiny_vae

FAMILIES = [
    name
    for name, row in CATALOG.items()
    if name.endswith("-tiny") and not row.config.condition_shape and row.config.clip_frames is None
]
APG = SamplingConfig(steps=4, guidance=3.0, guidance_kind="apg", guidance_levels=(0.1, 50.0), guidance_rescale=0.5)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SOME = [pytest.param(n, marks=() if n in ("U-DiT-tiny", "SiT-tiny") else pytest.mark.slow) for n in FAMILIES]
WITHOUT_UDIT = """
import sys

sys.modules["udit"] = None  # now importing it fails, wherever it may be installed
import json
import numpy as np
from diffusers import DiffusionPipeline

calls = json.loads(sys.argv[1])
pipes = {
    folder: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    for folder in dict.fromkeys(folder for folder, _, _ in calls)
}
for folder, out, arguments in calls:  # all are loaded before the first one draws
    pipes[folder].set_progress_bar_config(disable=True)
    images = pipes[folder](**arguments, output_type="pt").images.numpy()
    np.save(out, images)
    picture = np.asarray(pipes[folder](**arguments).images[0])
    assert (picture.reshape(*images.shape[2:], -1) == images[0].transpose(1, 2, 0)).all()
first, out, arguments = calls[0]
pipes[first].save_pretrained("saved")
again = DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)
assert (again(**arguments, output_type="pt").images.numpy() == np.load(out)).all()
assert not any(name.startswith("udit.") for name in sys.modules)
"""
"""Draws by diffusers alone."""
Call = tuple[Path, dict[str, object]]
NAMES = {"guidance_scale": "guidance", "num_inference_steps": "steps"}
"""What diffusers calls a setting -> what a ``SamplingConfig`` does."""


def made(model: ModelConfig | str, **parts: object) -> System:
    """A system with weights far from their initial ones, whose images are neither black nor white."""
    config = CATALOG[model].config if isinstance(model, str) else model
    network = build(config, seed=1)
    perturb(network)
    diffusion = parts.pop("diffusion", None) or native_diffusion(config)
    sampling = parts.pop("sampling", None) or SamplingConfig(sampler=type(diffusion).samplers()[0], steps=3)
    values = {"model": config, "diffusion": diffusion, "sampling": sampling, **parts}
    return System(SystemConfig(**values), network.eval())


def drawn(calls: list[Call], tmp_path: Path, endpoint: str | None = None) -> list[np.ndarray]:
    """Images of folders, uint8 [N, C, H, W], by a process that cannot import udit; of a hub's models at an endpoint."""
    given = [(str(folder), str(tmp_path / f"{i}.npy"), arguments) for i, (folder, arguments) in enumerate(calls)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if endpoint is not None:
        environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_CACHE": str(tmp_path / "cache without udit")}
    environment |= {"USE_TORCH": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT_UDIT, json.dumps(given)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [np.load(out) for _, out, _ in given]


def by_udit(system: System, arguments: dict[str, object]) -> np.ndarray:
    """The same images by udit."""
    known = {key: value for key, value in arguments.items() if key not in ("class_labels", "seeds")}
    settings = {NAMES.get(key, key): value for key, value in known.items()}
    return udit.generate(system, arguments["seeds"], arguments["class_labels"], sampling=settings).images().numpy()


def check_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    """Within a level, of images that show something."""
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
    inside = (wanted > 0) & (wanted < 255)
    assert inside.mean() > 0.2, "black and white pixels hide differences"


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # importing diffusers' pipelines alone takes ten seconds
@pytest.mark.timeout(300)
def test_a_process_without_udit_draws_the_same_pictures(tmp_path: Path) -> None:
    velocity = DDPMConfig(predict="v")
    udit_model = made("U-DiT-tiny", diffusion=velocity, id2label=DIGITS)
    vae = complete(VAECodec(source=str(tiny_vae(tmp_path / "source"))))
    latent = CATALOG["DiT-tiny"].config.replace(in_channels=2, input_size=4, num_classes=3, learn_sigma=False)
    flow = CATALOG["DiT-tiny"].config.replace(in_channels=4, learn_sigma=False)
    systems = {
        "pixels": udit_model,
        "apg": made("U-DiT-tiny", diffusion=velocity, sampling=APG),
        "latents": made(latent, diffusion=velocity, codec=vae),
        "flow": made(flow, diffusion=FlowConfig(), codec=SpaceToDepthCodec(factor=2)),
    }
    for name, system in systems.items():
        udit.export(system, "diffusers", tmp_path / name)
    seeds = {"seeds": [7, 3, 2**62], "class_labels": [1, 0, 2]}
    guided = {"guidance_scale": 3.0, "guidance_interval": [0.2, 0.9], "guidance_channels": 1}
    calls: list[Call] = [
        (tmp_path / "pixels", {**seeds, "sampler": "ddpm", "num_inference_steps": 4}),
        (tmp_path / "latents", {**seeds, "sampler": "ddim", "num_inference_steps": 4, **guided}),
        (tmp_path / "flow", {**seeds, "sampler": "flow-euler", "num_inference_steps": 4, **guided}),
        (tmp_path / "apg", seeds),  # the model's own setting, its guidance kept between evaluations
        (tmp_path / "pixels", {"seeds": [7, 3], "class_labels": "nine, two", "sampler": "ddim", "eta": 0.5}),
    ]
    for (folder, arguments), found in zip(calls, drawn(calls, tmp_path), strict=True):
        check_equal(found, by_udit(systems[folder.name], arguments))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pushed_models_are_loaded_by_their_names_without_udit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = CATALOG["DiT-tiny"].config.replace(in_channels=2, input_size=4, num_classes=3, learn_sigma=False)
    velocity = DDPMConfig(predict="v")
    systems = {
        "me/u-dit": made("U-DiT-tiny", diffusion=velocity, id2label=DIGITS),
        "me/dit": made(CATALOG["DiT-tiny"].config.replace(learn_sigma=False), diffusion=FlowConfig()),
        "me/latent": made(latent, diffusion=velocity, codec=complete(VAECodec(source=str(tiny_vae(tmp_path / "vae"))))),
    }
    samplers = {"me/u-dit": ("ddpm", "ddim"), "me/dit": ("flow-euler",), "me/latent": ("ddpm", "ddim")}
    seeds: dict[str, object] = {"seeds": [7, 3], "class_labels": [1, 2], "num_inference_steps": 4}
    calls: list[Call] = [
        (Path(name), {**seeds, "sampler": sampler}) for name, chosen in samplers.items() for sampler in chosen
    ]
    with taking_uploads() as hub:
        use(hub, tmp_path / "hf", monkeypatch)  # type: ignore[arg-type]
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name, system in systems.items():
            udit.push(udit.save(system, tmp_path / "models" / name), name, diffusers=True, grid=False)
        loaded = {name: udit.load(name) for name in systems}
        found = drawn(calls, tmp_path, endpoint=hub.endpoint)
    for (name, arguments), images in zip(calls, found, strict=True):
        check_equal(images, by_udit(systems[str(name)], arguments))
        check_equal(images, by_udit(loaded[str(name)], arguments))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_family_draws_the_same_pictures(tmp_path: Path) -> None:
    calls: list[Call] = []
    systems = {}
    for name in FAMILIES:
        systems[name] = made(name)
        udit.export(systems[name], "diffusers", tmp_path / name)
        calls.append((tmp_path / name, {"seeds": [5, 6], "class_labels": [3, 7], "guidance_scale": 2.0}))
    for (folder, arguments), found in zip(calls, drawn(calls, tmp_path), strict=True):
        wanted = by_udit(systems[folder.name], arguments)
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1, folder.name


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_the_network_in_the_file_is_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = made(name).fused()
    network, config = system.backbone, system.config.model
    text = Writer(Bundle(pipelines.ROOT, ("UditNetwork",), {"MODEL": config}, "ddpm")).text("The network alone.")
    module = types.ModuleType("network_alone")
    stand_ins = {  # importing diffusers' own takes ten seconds
        "diffusers": {},
        "diffusers.configuration_utils": {
            "ConfigMixin": type("C", (), {}),
            "register_to_config": lambda method: method,
        },
        "diffusers.models.modeling_utils": {"ModelMixin": torch.nn.Module},
        module.__name__: {},
    }
    for where, names in stand_ins.items():
        monkeypatch.setitem(sys.modules, where, types.ModuleType(where))
        vars(sys.modules[where]).update(names)
    module = sys.modules[module.__name__]
    exec(compile(text.partition("\nif not __name__")[0], module.__name__, "exec"), vars(module))
    built = module.UditNetwork().network.eval()
    built.load_state_dict(network.state_dict())
    given = inputs(config, 3, config.size)
    with torch.no_grad(), ops.kernels("off"):  # the file has none
        wanted = network(*given)
        assert torch.allclose(built(*given), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SOME)
def test_pipeline_py_is_whole_and_can_be_read(name: str, tmp_path: Path) -> None:
    text = pipeline_text(made(name).fused())
    (tmp_path / "pipeline.py").write_text(text)
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {str(root).split(".")[0] for root in roots} - set(sys.stdlib_module_names) == {"torch", "numpy", "diffusers"}
    assert udit.__version__ in text and "pydantic" not in text and "OPERATOR" not in text
    assert all(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--line-length", "120"]
    rules = ["--select", "F,E", "--quiet", str(tmp_path / "pipeline.py")]  # undefined and unused names, long lines
    done = subprocess.run([*command, *rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_pipeline_py_holds_no_other_process_and_no_other_attention() -> None:
    text = pipeline_text(made("U-DiT-tiny").fused())
    names = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert {"UDiT", "DownsampledAttention", "DDIM", "Ancestral", "UditPipeline"} <= names
    assert not names & {"DiT", "WindowAttention", "Flow", "EDM", "Learning", "Losses", "hybrid_loss", "SystemConfig"}


@pytest.mark.slow
def test_the_folder_says_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    udit.export(made("U-DiT-tiny", id2label=DIGITS), "diffusers", folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["id2label"]["3"] == "three"
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["beta_start"], scheduler["beta_end"], scheduler["beta_schedule"]) == (0.0001, 0.02, "linear")
    card = (folder / "README.md").read_text()
    assert "`trust_remote_code=True` executes `pipeline.py`" in card and udit.__version__ in card
    assert [path.name for path in folder.rglob("*.py")] == ["pipeline.py"]


# -- read back ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_udit_reads_the_folder_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    system = made("U-DiT-tiny", diffusion=DDPMConfig(predict="v"), id2label=DIGITS)
    udit.export(system, "diffusers", tmp_path / "out")
    arguments: dict[str, object] = {"seeds": [1, 2], "class_labels": ["four", "two"]}
    wanted = by_udit(system, arguments)
    np.testing.assert_array_equal(by_udit(udit.load(tmp_path / "out"), arguments), wanted)
    with pytest.raises(UserError, match="exported with"):
        udit.load(tmp_path / "out", weights="raw")
    succeeds(capsys, "convert", str(tmp_path / "out"), str(tmp_path / "again"))
    np.testing.assert_array_equal(by_udit(udit.load(tmp_path / "again"), arguments), wanted)


@pytest.mark.slow
def test_a_vae_goes_with_the_folder_and_is_found_where_the_folder_is(tmp_path: Path) -> None:
    source = tiny_vae(tmp_path / "source")
    config = CATALOG["DiT-tiny"].config.replace(in_channels=2, input_size=4, learn_sigma=False)
    udit.export(made(config, codec=complete(VAECodec(source=str(source)))), "diffusers", tmp_path / "out")
    assert str(source) not in (tmp_path / "out" / "config.json").read_text(), "a path of this machine"
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert udit.load(moved).codec.config.source == str(moved / "vae")


# -- refused -----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_one_line(tmp_path: Path, error_of: ErrorOf) -> None:
    udit.save(made("U-DiT-tiny"), tmp_path / "model")
    for option in (("--size", "8"), ("--int8",)):
        message = error_of("export", "diffusers", str(tmp_path / "model"), *option)
        assert option[0] in message and "leave it out" in message
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    message = error_of("export", "diffusers", str(tmp_path / "model"), "--out", str(tmp_path / "mine"))
    assert "no exported pipeline" in message


def test_a_model_of_vectors_is_refused(tmp_path: Path) -> None:
    config = CATALOG["U-DiT-tiny"].config.replace(num_classes=0, context={"tokens": 2, "width": 3})
    with pytest.raises(UserError, match="takes vectors"):
        udit.export(made(config), "diffusers", tmp_path / "out")


@pytest.mark.slow
def test_a_network_that_differs_is_refused_and_an_older_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    udit.export(made("U-DiT-tiny"), "diffusers", tmp_path / "out")
    before = (tmp_path / "out" / "pipeline.py").read_bytes()
    honest: Callable[[System], str] = pipelines.pipeline_text
    monkeypatch.setattr(
        pipelines,
        "pipeline_text",
        lambda system: (
            honest(system)
            .replace("x + shift", "x - shift")
            .replace("torch.addcmul(x, gate, y)", "torch.addcmul(x, gate, y, value=2)")
        ),
    )
    with pytest.raises(UserError, match="differs from the model's"):
        udit.export(made("U-DiT-tiny"), "diffusers", tmp_path / "out")
    assert (tmp_path / "out" / "pipeline.py").read_bytes() == before
