"""``udit sample`` draws the same image for the same seed and label, however it is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import udit
from conftest import TINY, ErrorOf, perturb, succeeds
from runs import environment, finish, free_port
from udit.assemble import System
from udit.cli import main
from udit.cli.sample import parse_seeds
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.images import grid, read_pixels, save_png
from udit.run.system import SystemConfig

NAMES = ("ant", "bee", "cow", "dog", "elk")
SEEDS, COUNT = "0-10", 11


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder whose weights are noise: its images show every difference."""
    network = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False}), 0.05)
    config = SystemConfig(
        model=network.config,
        diffusion=FlowConfig(),
        sampling=SamplingConfig(sampler="flow-euler", steps=3, guidance=1.5),
        id2label=NAMES,
    )
    folder = tmp_path_factory.mktemp("model") / "model"
    udit.save(System(config, network), folder)
    return str(folder)


@pytest.fixture(scope="module")
def one_by_one(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, each in a batch of its own."""
    out = tmp_path_factory.mktemp("one")
    draw(model, out, "--batch-size", "1")
    return out


def command(model: str, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "udit", "sample", model, "--seeds", SEEDS, "--out", str(out), "--no-progress", *more]


def draw(model: str, out: Path, *more: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(model, out, *more)[3:])
    assert ended.value.code == 0


def pixels(out: Path) -> np.ndarray:
    """[N, C, H, W] of the numbered images."""
    return torch.stack([read_pixels(path) for path in sorted(out.glob("0*.png"))]).numpy().astype(int)


def test_same_seeds_are_the_same_png_at_any_batch_size(
    model: str, one_by_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here of four, the last of three; all in one batch are in the npz below."""
    succeeds(capsys, *command(model, tmp_path, "--batch-size", "4")[3:])
    wanted = pixels(one_by_one)
    assert wanted.shape == (COUNT, 1, 8, 8)
    assert wanted.std() > 20, "pictures that could show a difference"
    assert np.abs(pixels(tmp_path) - wanted).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("output", ["png", "npz"])
def test_several_ranks_sample_the_same_images(model: str, one_by_one: Path, tmp_path: Path, output: str) -> None:
    group = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    words = command(model, tmp_path, "--output", output, "--batch-size", "2")
    ranks = [environment(RANK=str(rank), **group) for rank in range(3)]
    for code, errors in finish([subprocess.Popen(words, env=rank, **quiet) for rank in ranks]):
        assert code == 0, errors
    drawn = pixels(tmp_path) if output == "png" else np.load(tmp_path / "samples.npz")["arr_0"].transpose(0, 3, 1, 2)
    assert np.abs(drawn.astype(int) - pixels(one_by_one)).max() <= 1


def test_images_contain_their_settings(model: str, one_by_one: Path) -> None:
    settings = json.loads(Image.open(one_by_one / "000007.png").text["udit"])
    assert settings["seed"] == 7
    assert (settings["label"], settings["class"]) == (2, "cow")
    assert settings["sampling"]["steps"] == 3
    assert settings["sampling"]["guidance"] == 1.5
    other = json.loads(Image.open(one_by_one / "000008.png").text["udit"])
    assert settings["model"] == other["model"]
    assert len(settings["model"]) >= 16


def test_settings_of_an_image_sample_it_again_alone(
    model: str, one_by_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", model, "--seeds", "7", "--labels", "cow", "--out", str(tmp_path), "--no-progress"]
    assert succeeds(capsys, *words) == f"wrote 1 images and grid.png to {tmp_path}\n"
    assert np.abs(pixels(tmp_path)[0] - pixels(one_by_one)[7]).max() <= 1


def test_grid_shows_every_image_and_npz_holds_the_same(
    model: str, one_by_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = torch.from_numpy(pixels(one_by_one).astype(np.uint8))
    labels = [i % 5 for i in range(COUNT)]
    wanted = np.array(grid(images, [NAMES[label] for label in labels], columns=5, numbers=labels))
    assert np.array_equal(np.array(Image.open(one_by_one / "grid.png")), wanted)
    words = ["sample", model, "--n", str(COUNT), "--output", "npz", "--out", str(tmp_path), "--no-progress"]
    assert f"arr_0 uint8 [{COUNT}, 8, 8, 1]" in succeeds(capsys, *words)
    batch = np.load(tmp_path / "samples.npz")
    assert batch["arr_1"].tolist() == [i % 5 for i in range(COUNT)]
    assert np.abs(batch["arr_0"].transpose(0, 3, 1, 2).astype(int) - pixels(one_by_one)).max() <= 1


def test_options_change_the_images(model: str, one_by_one: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wanted = pixels(one_by_one)[:3]
    for name, words in {
        "steps": ["--steps", "5"],
        "scale": ["--guidance", "4"],
        "label": ["--labels", "elk"],
        "cache": ["--cache", "2"],
    }.items():
        out = tmp_path / name
        succeeds(capsys, "sample", model, "--seeds", "0-2", "--out", str(out), "--no-progress", *words)
        assert np.abs(pixels(out) - wanted).max() > 1, name


def test_seeds_are_listed_ranged_cut_and_counted_on() -> None:
    assert parse_seeds(None, None) == list(range(16))
    assert parse_seeds("3,5-7", None) == [3, 5, 6, 7]
    assert parse_seeds("3,5-7", 2) == [3, 5]
    assert parse_seeds("10-11", 4) == [10, 11, 12, 13]
    assert parse_seeds(None, 3) == [0, 1, 2]


def test_mistakes_are_refused_and_nothing_is_sampled(model: str, tmp_path: Path, error_of: ErrorOf) -> None:
    def line(*words: str) -> str:
        return error_of("sample", *words, "--out", str(tmp_path / "out"), "--no-progress")

    assert "no class 'cat'; did you mean" in line(model, "--labels", "cat")
    assert "label 5 is out of range" in line(model, "--labels", "5")
    assert "label -1 is out of range" in line(model, "--labels=-1")
    assert "use flow-euler" in line(model, "--sampler", "ddim")
    assert "cache is 0" in line(model, "--cache", "0")
    assert "guidance_channels is 9" in line(model, "--guidance-channels", "9")
    assert "no model" in line("nowhere")
    (tmp_path / "weights.pt").write_bytes(b"PK")
    assert "is a pickle" in line(str(tmp_path / "weights.pt"))
    assert "model.raw.safetensors is missing; the folder is incomplete" in line(model, "--weights", "raw")
    assert not list(tmp_path.glob("out/*.png"))
    (tmp_path / "file").write_text("mine")
    assert "cannot write to" in error_of("sample", model, "--out", str(tmp_path / "file"))


def test_images_of_an_earlier_call_are_not_mixed_with_new_ones(
    model: str, tmp_path: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["sample", model, "--steps", "1", "--out", str(out), "--no-progress"]
    succeeds(capsys, *words, "--n", "4")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    line = error_of(*words, "--n", "2", "--labels", "elk")
    assert line.startswith(
        f"{out} holds 4 images of an earlier `udit sample`; give another folder with --out, or --over"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "notes.txt").write_text("mine")
    succeeds(capsys, *words, "--n", "2", "--labels", "elk", "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["000000.png", "000001.png", "grid.png", "notes.txt"]
    assert (out / "000000.png").read_bytes() != before["000000.png"]


@pytest.mark.parametrize("name", ["000007.png", "cat.png", "grid.png", "000000.jpg"])
def test_images_of_others_are_never_removed(model: str, tmp_path: Path, error_of: ErrorOf, name: str) -> None:
    """A name like ours is not enough: the settings in the file decide; and a file of ours with another name is kept."""
    mine = tmp_path / name
    if name == "cat.png":
        save_png(Image.new("L", (8, 8)), mine, {"seed": 1})
    else:
        Image.new("L", (8, 8)).save(mine)
    before = mine.read_bytes()
    for more in ([], ["--overwrite"]):
        line = error_of("sample", model, "--n", "1", "--out", str(tmp_path), "--no-progress", *more)
        assert f"holds images that `udit sample` did not write, e.g. {name}" in line
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
