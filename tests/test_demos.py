"""Models that come with the library: ``demo:NAME`` works wherever a model is taken, before any training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import udit
from udit.demos.find import folder_of, names
from udit.dist import World
from udit.errors import UserError
from udit.models.build import fuse
from udit.run.recipes import list_recipes, load_run
from udit.scoring import evaluation_folder
from udit.store import read_config, save
from udit.training.learner import Learner

OneLine = Callable[[BaseException], str]
LARGEST = {"digits": 1_000_000, "fashion-mnist": 5_000_000}


def test_there_is_a_demo_of_each_small_recipe_below_its_size() -> None:
    assert names() == sorted(LARGEST)
    assert set(LARGEST) < set(list_recipes())
    for name, largest in LARGEST.items():
        folder = folder_of(f"demo:{name}")
        assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
        assert (folder / "model.safetensors").stat().st_size <= largest
        assert "license: apache-2.0" in (folder / "README.md").read_text(encoding="utf-8")
        assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}


def test_demo_is_the_fused_model_of_its_recipe_in_float32() -> None:
    for name in LARGEST:
        assert all(p.dtype == torch.float32 for p in udit.load(f"demo:{name}").backbone.parameters())
    run, config = load_run("digits"), udit.load("demo:digits").config
    assert config.model == run.model.folded()
    assert (config.steps, config.sampling) == (run.training.steps, run.sampling)


def test_demo_draws_images(tmp_path: Path) -> None:
    images = udit.generate("demo:digits", seeds=[0, 1], labels=[3, 7], sampling={"steps": 3})
    images.save_pngs(tmp_path, progress=False)
    assert len(list(tmp_path.glob("*.png"))) == 3  # two and the grid
    (batch,) = udit.generate("demo:fashion-mnist", seeds=[0], labels=["sneaker"], sampling={"steps": 1})
    assert batch.images.shape == (1, 1, 32, 32)


def test_demo_begins_a_training(tmp_path: Path) -> None:
    run = load_run("digits", ["init_from=demo:digits", f"out={tmp_path / 'tuned'}", "training.steps=1"])
    assert run.init_from == "demo:digits"
    learner = Learner(run, World())
    learner.start_from_trained()
    stem = dict(udit.load("demo:digits").backbone.named_parameters())["stem.weight"]
    assert torch.equal(dict(learner.model.named_parameters())["stem.weight"], stem)


def test_scores_of_a_demo_go_to_a_folder_of_its_own() -> None:
    assert evaluation_folder("demo:digits") == Path("runs/demo-digits/evaluation")
    assert evaluation_folder("runs/digits") == Path("runs/digits/evaluation")


def test_half_precision_is_float32_again_when_loaded(tmp_path: Path) -> None:
    system = udit.load("demo:digits")
    saved = save(system, tmp_path / "half", precision="float16")
    again = udit.load(saved)
    assert again.fingerprint == system.fingerprint  # the demo's own weights are of float16 already
    assert read_config(saved / "config.json") == read_config(folder_of("demo:digits") / "config.json")
    assert fuse(again.backbone).state_dict().keys() == again.backbone.state_dict().keys()


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: udit.load("demo:digit"), "no model 'demo:digit'; there are demo:digits, demo:fashion-mnist"),
        (lambda: udit.load("demo:digits", weights="raw"), "averaged weights alone"),
        (lambda: load_run("digits", ["init_from=demo:mnist"]), "there are demo:digits, demo:fashion-mnist"),
        (lambda: udit.export("demo:digits", "onnx"), "no folder to write beside; name one with --out"),
    ],
)
def test_what_a_demo_cannot_do_is_one_line(action: Callable[[], object], said: str, one_line: OneLine) -> None:
    with pytest.raises(UserError) as error:
        action()
    assert said in one_line(error.value)
