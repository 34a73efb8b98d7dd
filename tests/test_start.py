"""A run that starts from trained weights takes what fits, rebuilds the label tables, and resumes without its source."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import udit
from conftest import TINY, ErrorOf, perturb, same_bits, succeeds
from hub_stand_in import COMMIT, serving, use
from runs import RECIPE, image_folder, state_hash, train
from udit.assemble import System
from udit.errors import UserError
from udit.run.config import Run
from udit.run.recipes import load_run, to_yaml
from udit.run.start import trained_on
from udit.run.system import SystemConfig
from udit.training.start import start_from

OneLine = Callable[[BaseException], str]


def folder_of(root: Path, *names: str, size: int = 8, channels: int = 1) -> list[str]:
    """Random images, six per class; the overrides that train on them."""
    random = np.random.default_rng(1)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (size, size), np.uint8)).save(root / name / f"{i}.png")
    return ["data.kind=folder", f"data.root={root}", f"data.size={size}", f"data.channels={channels}"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The folder of a model of five classes on [1, 8, 8], none of its weights zero."""
    model = perturb(udit.build("U-DiT-S", **{**TINY, "in_channels": 1}))
    return udit.save(
        System(SystemConfig(model=model.config, id2label=("cat", "cow", "dog", "elk", "fox")), model),
        tmp_path / "source",
    )


def begun(run: Run) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """The weights a run starts with, those it would have had, and the report."""
    model, fresh = udit.build(run.model, seed=run.seed), udit.build(run.model, seed=run.seed)
    report = start_from(model.state_dict(), run)
    return model.state_dict(), fresh.state_dict(), report


def test_label_tables_keep_the_null_row_and_the_classes_both_know(source: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", "bee", "dog", "elk")
    run = load_run("folder", [*data, f"init_from={source}", "num_classes=3"])
    assert run.model == udit.load(source).config.model.replace(num_classes=3, input_size=(8, 8))
    old = load_file(source / "model.safetensors")
    state, fresh, report = begun(run)
    tables = [name for name in state if name.endswith("label.weight")]
    assert len(tables) == 2
    for name, tensor in state.items():
        if name not in tables:
            assert torch.equal(tensor, old[name])
            continue
        assert torch.equal(tensor[0], fresh[name][0])
        assert torch.equal(tensor[1:3], old[name][2:4])
        assert torch.equal(tensor[3], old[name][5])
    assert report[0].startswith(f"init_from {source}: took {len(state) - 2} of {len(state)} tensors (")
    assert report[1:] == ["label table for 3 classes: null row kept, 2 by name (dog, elk), 1 initialised"]


def test_tables_without_names_are_taken_in_order_or_not_at_all(source: Path, tmp_path: Path) -> None:
    nameless = udit.load(source)
    udit.save(System(nameless.config.model_copy(update={"id2label": ()}), nameless.backbone), tmp_path / "nameless")
    for names, line in (
        (tuple("abcde"), "null row kept, 5 in order (a, b, c, d, e), 0 initialised"),
        (tuple("abc"), "null row kept, 3 initialised"),
    ):
        data = folder_of(tmp_path / "".join(names), *names)
        _, _, report = begun(load_run(RECIPE, [*data, f"init_from={tmp_path / 'nameless'}"]))
        assert report[1] == f"label table for {len(names)} classes: {line}"


def test_other_channels_and_sizes_are_initialised_where_they_change_a_shape(source: Path, tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", "cat", "dog", size=16, channels=3)
    run = load_run(RECIPE, [*data, f"init_from={source}"])
    assert (run.model.in_channels, run.model.size) == (3, (16, 16))
    state, fresh, report = begun(run)
    old = load_file(source / "model.safetensors")
    for name, tensor in state.items():
        if name in ("stem.weight", "out.weight", "out.bias"):
            assert torch.equal(tensor, fresh[name])
        elif not name.endswith("label.weight"):
            assert torch.equal(tensor, old[name])
    assert report[2] == "initialised: stem.weight, out.weight, out.bias"


def test_learned_positions_of_another_size_are_initialised_and_fixed_ones_recomputed(tmp_path: Path) -> None:
    sizes = {"width": 16, "depth": 4, "heads": 2, "in_channels": 1, "num_classes": 2, "input_size": 8}
    for name, anew in (("U-ViT-L/2", ["positions"]), ("DiT-S/2", [])):
        model = perturb(udit.build(name, **sizes))
        path = udit.save(System(SystemConfig(model=model.config), model), tmp_path / name.replace("/", "-"))
        data = folder_of(tmp_path / f"data-{anew}", "cat", "dog", size=16)
        _, _, report = begun(load_run(RECIPE, [*data, f"init_from={path}"]))
        assert report[2:] == ([f"initialised: {anew[0]}"] if anew else [])


def test_unconditional_run_leaves_the_label_tables_out(source: Path, tmp_path: Path) -> None:
    run = load_run(RECIPE, [*folder_of(tmp_path / "data", "cat"), f"init_from={source}", "num_classes=0"])
    _, _, report = begun(run)
    assert report[1] == "left out: conditioners.0.label.weight, conditioners.1.label.weight"


def test_run_begins_with_the_weights_and_resumes_exactly_without_its_source(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*folder_of(tmp_path / "data", "bee", "dog"), f"init_from={source}", "training.lr=1e-9"]
    words += ["model.depths=[1,1,1]", "sampling.steps=1"]
    with caplog.at_level(logging.INFO):
        train(tmp_path / "whole", *words, "training.steps=6")
    assert "label table for 2 classes: null row kept, 1 by name (dog), 1 initialised" in caplog.text
    train(tmp_path / "cut", *words, "training.steps=3")
    weights = udit.load(tmp_path / "cut").backbone.state_dict()
    old = load_file(source / "model.safetensors")
    torch.testing.assert_close(weights["stem.weight"], old["stem.weight"], rtol=0, atol=1e-6)
    shutil.rmtree(source)
    train(tmp_path / "cut", *words, "training.steps=6")
    assert state_hash(tmp_path / "cut") == state_hash(tmp_path / "whole")
    with pytest.raises(UserError, match=r"init_from is .*, no folder"):
        train(tmp_path / "new", *words, "training.steps=3")


def test_run_folder_and_converted_release_are_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = image_folder(tmp_path / "data")
    train(tmp_path / "first", *data, "training.steps=2")
    run = load_run(RECIPE, [*folder_of(tmp_path / "more", "cat", "dog", "eel"), f"init_from={tmp_path / 'first'}"])
    _, _, report = begun(run)
    assert report[1] == "label table for 3 classes: null row kept, 2 by name (cat, dog), 1 initialised"
    release = perturb(udit.build("U-DiT-S", width=16, heads=2, depths=(1, 1, 1), input_size=8))
    save_file(udit.export_published(release), tmp_path / "w.safetensors")
    named = ["--model", "U-DiT-S", "width=16", "heads=2", "depths=[1,1,1]", "input_size=8"]
    succeeds(capsys, "convert", str(tmp_path / "w.safetensors"), str(tmp_path / "model"), *named)
    words = [*folder_of(tmp_path / "big", "cat", "dog", size=64, channels=3), f"init_from={tmp_path / 'model'}"]
    run = load_run("folder", [*words, "num_classes=2"])
    assert run.codec.source == "stabilityai/sd-vae-ft-ema"
    assert (run.model.in_channels, run.model.size, run.model.num_classes) == (4, (8, 8), 2)
    _, _, report = begun(run)
    assert report[1:] == ["label table for 2 classes: null row kept, 2 initialised"]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("model.width=32", "model.width is 32 and the weights of init_from="),
        ("model=U-DiT-S", "model.width is 96 and the weights of init_from="),
        ("model.widht=16", "unknown key 'model.widht'; did you mean 'width'?"),
        ("diffusion={kind: flow}", "diffusion.kind is 'flow' and the weights of init_from="),
        ("num_classes=1", "model.num_classes is 1 and the data has 2 classes"),
        ("init_from=nowhere", "init_from is 'nowhere', no folder; give a model folder, a run folder or a hub id"),
        ("init_from=7", "init_from is 7; give a model folder"),
    ],
)
def test_what_the_weights_decide_is_not_overruled(
    source: Path, tmp_path: Path, word: str, wanted: str, one_line: OneLine
) -> None:
    words = [*folder_of(tmp_path / "data", "cat", "dog"), f"init_from={source}", word]
    with pytest.raises(UserError) as error:
        load_run(RECIPE, words)
    assert wanted in one_line(error.value)


def test_config_and_weights_of_the_hub_are_of_one_commit(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    words = [*folder_of(tmp_path / "data", "cat", "dog"), "training.steps=1", f"out={tmp_path / 'out'}"]
    with serving(files) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        run = load_run("folder", [*words, "init_from=o/m"])
        hub.push("b" * 40, {**files, "model.safetensors": b"of another model"})
        assert run.init_from == f"o/m@{COMMIT}"
        weights, _, report = begun(run)
        old = load_file(source / "model.safetensors")
        assert "took" in report[0]
        inner = [name for name in old if "blocks" in name]
        assert same_bits({name: weights[name] for name in inner}, {name: old[name] for name in inner})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.yaml").write_text(to_yaml(run.plain()), encoding="utf-8")
    assert load_run("folder", [*words, "init_from=o/m"]) == run  # the hub is gone, and the run has begun


def test_files_and_damaged_folders_are_refused(source: Path, tmp_path: Path, error_of: ErrorOf) -> None:
    data = folder_of(tmp_path / "data", "cat", "dog")
    file = tmp_path / "w.pt"
    file.write_bytes(b"x")
    words = ["train", RECIPE, *data, f"out={tmp_path / 'out'}"]
    assert "convert it once: `udit convert" in error_of(*words, f"init_from={file}")
    assert "config.json cannot be read (No such file or directory)" in error_of(*words, f"init_from={tmp_path}")
    diffusers = tmp_path / "dit" / "transformer"
    diffusers.mkdir(parents=True)
    (diffusers / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    line = error_of(*words, f"init_from={diffusers.parent}")
    assert f"diffusers' DiTTransformer2DModel; convert it once: `udit convert {diffusers.parent} FOLDER`" in line
    (source / "config.json").write_text("[]")
    assert "has no section 'model'; init_from takes a folder that udit wrote" in error_of(*words, f"init_from={source}")
    (source / "config.json").unlink()
    (source / "config.json").write_text("{")
    assert "config.json cannot be read" in error_of(*words, f"init_from={source}")


def resolved(caplog: pytest.LogCaptureFixture, *words: str) -> tuple[Run, str]:
    """The run of the recipe for folders, and what is told of it."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        return load_run("folder", words), caplog.text


def test_weights_give_the_size_where_the_command_line_does_not(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder_of(tmp_path / "data", "cat", "dog")
    words = [f"data.root={tmp_path / 'data'}", f"init_from={source}", "sampling.steps=1", "num_classes=2"]
    run, told = resolved(caplog, *words)
    assert (run.data.size, run.data.channels, run.model.size, run.model.in_channels) == (8, 1, (8, 8), 1)
    assert f"data.size is 8, that of the weights of init_from={source}, and not 32" in told
    assert "data.channels is 1, that of" in told
    run, told = resolved(caplog, *words, "data.size=16", "data.channels=1")
    assert run.model.size == (16, 16)
    assert f"data.size is 16 and the weights of init_from={source} were trained with 8" in told
    assert "channels" not in told
    written = tmp_path / "own.yaml"
    written.write_text(
        f"data: {{kind: folder, root: {tmp_path / 'data'}, size: 16, channels: 1}}\ninit_from: {source}\n"
    )
    assert load_run(str(written)).data.size == 16  # said where init_from is said


def test_size_of_images_follows_from_the_codec_of_the_weights() -> None:
    model = {"input_size": [8, 8], "in_channels": 4}
    assert trained_on(model, {"kind": "identity"}) == {"size": 8}
    assert trained_on(model, {"kind": "space-to-depth", "factor": 2}) == {"size": 16, "channels": 1}
    assert trained_on(model, {"kind": "vae", "factor": 8}) == {"size": 64}
    assert trained_on(model, {"kind": "vae"}) == {}
    wide = {"input_size": [8, 16], "in_channels": 3}
    assert trained_on(wide, {"kind": "identity"}) == {"size": [8, 16], "channels": 3}
