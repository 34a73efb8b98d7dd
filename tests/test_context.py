"""Images of models that take vectors, a text encoder's say: from Python, and from a file by ``udit sample``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import udit
from conftest import ErrorOf, perturb, succeeds
from udit.assemble import System
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import UserError
from udit.images import read_pixels
from udit.run.system import SystemConfig

ROWS = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
NULL = torch.zeros(2, 4)
TEXT: dict[str, Any] = {"num_classes": 0, "context": {"tokens": 2, "width": 4}, "learn_sigma": False}


def system_of(name: str = "U-ViT-tiny", **overrides: Any) -> System:
    network = perturb(udit.build(name, **overrides or TEXT))
    how = SamplingConfig(sampler="flow-euler", steps=3)
    return System(SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=how), network)


def drawn(system: System, rows: Tensor = ROWS, batch_size: int = 3, **how: float) -> Tensor:
    sampling = system.config.sampling.replace(**how)
    seeds = range(len(rows))
    parts = system.generate(seeds, context=rows, null=NULL, sampling=sampling, batch_size=batch_size)
    return torch.cat(list(parts)).int()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("context") / "model"
    udit.save(system_of(), path)
    return path


@pytest.mark.parametrize("name", ["U-ViT-tiny", "U-DiT-tiny"])
def test_images_follow_their_own_vectors_at_any_batch_size(name: str) -> None:
    system = system_of(name)
    together = drawn(system)
    assert (drawn(system, batch_size=1) - together).abs().max() <= 1
    other = drawn(system, ROWS[[0, 0, 2]])
    assert torch.equal(other[[0, 2]], together[[0, 2]])
    assert (other[1] - together[1]).abs().max() > 1


def test_guidance_leaves_the_null_condition() -> None:
    system = system_of()
    assert (drawn(system, guidance=3) - drawn(system)).abs().max() > 1
    nothing = NULL.expand(3, 2, 4)
    assert (drawn(system, nothing, guidance=3) - drawn(system, nothing)).abs().max() <= 1


def test_conditions_that_do_not_fit_are_refused(one_line: Callable[[BaseException], str]) -> None:
    text, classes = system_of(), system_of("DiT-tiny", num_classes=3, learn_sigma=False)

    def said(system: System, **options: object) -> str:
        with pytest.raises(UserError) as caught:
            next(system.generate([1, 2], **options))  # type: ignore[arg-type]
        return one_line(caught.value)

    assert "takes vectors of [2, 4] per image and was given none" in said(text)
    assert "context is [3, 2, 4] and the model takes [2, 2, 4]" in said(text, context=ROWS)
    assert "a model that takes no vectors" in said(classes, labels=[0, 1], context=ROWS[:2])
    guided = text.config.sampling.replace(guidance=2)
    assert "needs a null label" in said(text, context=ROWS[:2], sampling=guided)
    assert "null condition is [1, 4]" in said(text, context=ROWS[:2], null=NULL[:1], sampling=guided)
    assert "a model that takes no vectors" in said(classes, labels=[0, 1], null=NULL)


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_command_draws_the_rows_of_a_file_in_turn(
    folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"texts.{suffix}"
    if suffix == "npz":
        np.savez(file, context=ROWS.numpy(), null=NULL.numpy())
    else:
        save_file({"context": ROWS, "null": NULL}, file)
    words = ["--context", str(file), "--n", "5", "--guidance", "2", "--out", str(tmp_path / "out"), "--no-progress"]
    succeeds(capsys, "sample", str(folder), *words)
    paths = sorted((tmp_path / "out").glob("0*.png"))
    wanted = drawn(udit.load(folder), ROWS[[0, 1, 2, 0, 1]], guidance=2)
    assert (torch.stack([read_pixels(path) for path in paths]).int() - wanted).abs().max() <= 1
    settings = json.loads(Image.open(paths[4]).text["udit"])
    assert (settings["context"], settings["row"], settings["seed"]) == (file.name, 1, 4)


def test_files_that_do_not_fit_are_refused(folder: Path, tmp_path: Path, error_of: ErrorOf) -> None:
    def line(file: str, *words: str) -> str:
        context = ["--context", str(tmp_path / file)] if file else []
        return error_of("sample", str(folder), *context, *words, "--out", str(tmp_path / "out"), "--no-progress")

    np.savez(tmp_path / "whole.npz", context=np.zeros((2, 2, 4), np.int64))
    np.savez(tmp_path / "nan.npz", context=np.full((2, 2, 4), np.nan))
    np.savez(tmp_path / "named.npz", texts=ROWS.numpy())
    np.savez(tmp_path / "pickled.npz", context=np.array([[{}, {}]], dtype=object))
    np.savez(tmp_path / "wide.npz", context=np.zeros((2, 2, 5)))
    np.savez(tmp_path / "good.npz", context=ROWS.numpy())
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assert "it is not there" in line("nowhere.npz")
    assert "cannot read" in line("torn.safetensors")
    assert "cannot read" in line("pickled.npz")
    assert "holds 'context' as int64; write finite floats" in line("whole.npz")
    assert "with numbers that are not finite; write finite floats" in line("nan.npz")
    assert "holds nothing under 'context'" in line("named.npz")
    assert "the model takes [16, 2, 4] for 16 images" in line("wide.npz")
    assert "takes vectors of [2, 4] per image and was given none" in line("")
    assert "guidance 2 needs a null label" in line("good.npz", "--guidance", "2")
    assert "labels were given to an unconditional model" in line("good.npz", "--labels", "1")
    assert not list(tmp_path.glob("out/*.png"))
