"""Points between seeds and between classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import udit
from conftest import TINY, ErrorOf, batch, perturb, succeeds
from udit import rng
from udit.assemble import System
from udit.diffusion.config import DDPMConfig, FlowConfig, SamplingConfig
from udit.diffusion.sample import SeededNoise
from udit.errors import UserError
from udit.images import read_pixels, read_settings
from udit.interpolation import Between, Through, between
from udit.run.classes import Classes
from udit.run.system import SystemConfig

OneLine = Callable[[BaseException], str]
NAMES = ("ant", "bee", "cow, dairy", "dog", "elk")


# ---- points ----------------------------------------------------------------------------------------------------------


def test_points_run_evenly_through_all_ends() -> None:
    assert between([3, 8], 5) == [3, Between(3, 8, 0.25), Between(3, 8, 0.5), Between(3, 8, 0.75), 8]
    assert between([3, 8, 1], 5) == [3, Between(3, 8, 0.5), 8, Between(8, 1, 0.5), 1]
    assert between([3, 8, 1], 3) == [3, 8, 1]
    assert udit.between(["ant", "elk"], 3)[1] == Between("ant", "elk", 0.5)


@pytest.mark.parametrize(
    ("ends", "count", "rule"), [([3], 5, "runs between at least two"), ([3, 8, 1], 2, "2 images cannot show 3 ends")]
)
def test_paths_without_a_way_are_refused(ends: list[int], count: int, rule: str, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=rule) as caught:
        between(ends, count)
    one_line(caught.value)
    with pytest.raises(UserError, match="share is 2; it runs from 0"):
        Between(1, 2, 2.0)


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_noise_between_seeds_lies_on_the_great_circle() -> None:
    """At both ends it is the seeds' own, its angle grows evenly, and its norm stays that of noise."""
    shape = (1, 64, 64)
    noise = SeededNoise([3, *(Between(3, 8, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)), 8], shape)
    for k in (0, 4):
        rows = noise(k).double().flatten(1)
        torch.testing.assert_close(rows[1], rows[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rows[5], rows[6], rtol=1e-6, atol=1e-6)
        unit = rows / rows.norm(dim=1, keepdim=True)
        angles = [float((a * b).sum().clamp(-1, 1).acos()) for a, b in pairwise(unit[1:6])]
        assert angles == pytest.approx([sum(angles) / 4] * 4, abs=1e-5)
        lengths = rows.norm(dim=1) / 64
        assert ((lengths > 0.95) & (lengths < 1.05)).all()


def test_noise_between_a_seed_and_itself_is_its_own() -> None:
    assert torch.equal(rng.normal_at((2, 3), Between(5, 5, 0.3), "sample", 0), rng.normal((2, 3), 5, "sample", 0))


# ---- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["U-DiT-tiny", "U-ViT-tiny", "DiT-tiny", "HDiT-tiny", "DiC-tiny"])
@torch.no_grad()
def test_shares_of_classes_are_sums_of_their_embeddings(name: str) -> None:
    network = perturb(udit.build(name)).eval()
    x, t, y = batch(network)
    t, tables = t.float() + 1, [part for part in network.modules() if isinstance(part, torch.nn.Embedding)]
    shares = torch.nn.functional.one_hot(y, tables[0].num_embeddings).float()
    torch.testing.assert_close(network(x, t, shares), network(x, t, y), rtol=1e-4, atol=1e-4)
    mixed = torch.zeros_like(shares)
    mixed[:, 1], mixed[:, 4] = 0.25, 0.75
    found = network(x, t, mixed)
    for table in tables:
        table.weight[2] = 0.25 * table.weight[1] + 0.75 * table.weight[4]
    torch.testing.assert_close(found, network(x, t, torch.full_like(y, 2)), rtol=1e-4, atol=1e-4)


def test_floats_of_another_shape_are_refused(one_line: OneLine) -> None:
    network = udit.build("U-DiT-S", **TINY)
    x, t, y = batch(network)
    with pytest.raises(UserError, match=r"y is \[3\] floats; give \[3\] class numbers \(int64\), or a share") as caught:
        network(x, t, y.float())
    one_line(caught.value)


def test_names_and_numbers_are_ends_of_paths() -> None:
    classes = Classes(5, NAMES)
    assert classes.points(["ant", Between("bee", 4, 0.5), 3]) == [0, Between(1, 4, 0.5), 3]
    assert classes.title(Between(2, 4, 0.25)) == "cow, dairy to elk, 25%"
    with pytest.raises(UserError, match="no class 'cat'"):
        classes.points([Between("ant", "cat", 0.5)])


# ---- systems ---------------------------------------------------------------------------------------------------------


def system(diffusion: FlowConfig | DDPMConfig | None = None, **how: object) -> System:
    network = perturb(udit.build("U-DiT-S", **TINY | {"in_channels": 1, "learn_sigma": False}), 0.05).eval()
    sampling = SamplingConfig(sampler="flow-euler", steps=3, guidance=1.5).replace(**how)
    config = SystemConfig(model=network.config, diffusion=diffusion or FlowConfig(), sampling=sampling, id2label=NAMES)
    return System(config, network)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["flow-euler", "flow-sde", "ddpm"])
def test_images_between_are_the_same_in_any_batch_and_end_at_the_ends(sampler: str) -> None:
    model = system(DDPMConfig() if sampler == "ddpm" else None, sampler=sampler, steps=4)
    seeds, labels = between([3, 8], 5), between([1, 4], 5)
    together = torch.cat(list(model.generate(seeds, labels))).int()
    alone = torch.cat(list(model.generate(seeds, labels, batch_size=1))).int()
    assert (together - alone).abs().max() <= 1
    ends = torch.cat(list(model.generate([3, 8], [1, 4]))).int()
    assert (together[[0, 4]] - ends).abs().max() <= 1
    steps = (together[1:] - together[:-1]).abs().float().mean(dim=(1, 2, 3))
    assert steps.max() < (ends[0] - ends[1]).abs().float().mean()


def test_paths_of_labels_take_one_image_for_each_seed() -> None:
    images = udit.generate(system(), [5] * 4, Through("cow, dairy,elk"))
    assert images.labels == [2, Between(2, 4, 1 / 3), Between(2, 4, 2 / 3), 4]


def test_seeds_are_interpolated_for_one_class(one_line: OneLine) -> None:
    with pytest.raises(UserError, match="shows one class, and none is named; give labels") as caught:
        udit.generate(system(), between([3, 8], 5))
    one_line(caught.value)
    assert udit.generate(system(), between([3, 8], 5), [2]).labels == [2] * 5


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    udit.save(system(), folder)
    return str(folder)


def settings(path: Path) -> dict:
    found = read_settings(path)
    assert found is not None
    return found


def test_command_draws_a_strip_between_seeds(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--interpolate-seeds", "3,8", "--labels", "dog", "--no-progress", "--out", str(tmp_path)]
    assert succeeds(capsys, "sample", model, *words) == f"wrote 9 images and grid.png to {tmp_path}\n"
    first, middle = (settings(tmp_path / f"00000{i}.png") for i in (0, 4))
    assert (first["seed"], first["label"]) == (3, 3)
    assert "seed" not in middle
    assert (middle["seeds"], middle["seed_share"], middle["class"]) == ([3, 8], 0.5, "dog")
    with Image.open(tmp_path / "grid.png") as strip:
        assert strip.width > 7 * strip.height, "one row"
    wanted = next(system().generate([3, 8], [3, 3])).int()
    found = torch.stack([read_pixels(tmp_path / f"00000{i}.png") for i in (0, 8)]).int()
    assert (found - wanted).abs().max() <= 1


def test_command_draws_between_classes_of_one_seed(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--interpolate-labels", "cow, dairy,elk", "--n", "3", "--seeds", "6", "--no-progress"]
    succeeds(capsys, "sample", model, *words, "--out", str(tmp_path))
    middle = settings(tmp_path / "000001.png")
    assert (middle["seed"], middle["labels"], middle["label_share"]) == (6, [2, 4], 0.5)
    assert middle["class"] == "cow, dairy to elk, 50%"
    assert "label" not in middle
    json.dumps(middle)


def test_npz_of_images_between_classes_has_no_labels(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--interpolate-labels", "0,4", "--n", "3", "--output", "npz", "--no-progress"]
    succeeds(capsys, "sample", model, *words, "--out", str(tmp_path))
    assert np.load(tmp_path / "samples.npz").files == ["arr_0"]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("--interpolate-seeds 3,8", "an interpolation between seeds shows one class"),
        ("--interpolate-seeds 3 --labels 1", "an interpolation runs between at least two, and was given [3]"),
        ("--interpolate-seeds 3,x --labels 1", "--interpolate-seeds has 'x'"),
        ("--interpolate-seeds 3,8 --seeds 1 --labels 1", "--seeds and --interpolate-seeds both name seeds"),
        ("--interpolate-labels 1,2 --labels 1", "--labels and --interpolate-labels both name classes"),
        ("--interpolate-labels 1,2 --seeds 1,2", "--seeds is 1,2 and --interpolate-labels shows one seed"),
        ("--interpolate-labels 1,9", "label 9 is out of range"),
        ("--interpolate-labels 1,2 --n 1", "1 images cannot show 2 ends"),
    ],
)
def test_command_refuses_interpolations_that_make_no_sense(
    model: str, words: str, rule: str, tmp_path: Path, error_of: ErrorOf
) -> None:
    assert rule in error_of("sample", model, *words.split(), "--out", str(tmp_path))
