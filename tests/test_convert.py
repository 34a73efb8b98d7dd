"""Weights of releases become model folders and come back under their own names; nothing in a pickle runs."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import udit
from conftest import ErrorOf, perturb, same_bits, succeeds
from udit.convert.states import read_published
from udit.errors import UserError
from udit.models.published import export_published

SIZE = {"width": 16, "heads": 2, "depths": (1, 1, 1), "input_size": 8}
NAMED = ["--model", "U-DiT-S", "width=16", "heads=2", "depths=[1,1,1]", "input_size=8"]


@pytest.fixture(scope="module")
def released() -> dict[str, Tensor]:
    """A small network's weights under the release's names."""
    return export_published(perturb(udit.build("U-DiT-S", **SIZE)))


WRAPPINGS = {
    "bare.pt": lambda state: state,
    "ema.pt": lambda state: {"ema": state, "model": {k: v + 1 for k, v in state.items()}, "args": argparse.Namespace()},
    "model.pth": lambda state: {"model": state},
    "lightning.ckpt": lambda state: {"state_dict": state, "epoch": 3},
}


@pytest.mark.parametrize("name", [*WRAPPINGS, "plain.safetensors"])
def test_release_becomes_a_model_folder_and_comes_back_with_its_bits(
    released: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file, folder, back = tmp_path / name, tmp_path / "model", tmp_path / "back.safetensors"
    if name in WRAPPINGS:
        torch.save(WRAPPINGS[name](released), file)
    else:
        save_file(released, file)
    count = sum(p.numel() for p in udit.build("U-DiT-S", device="meta", **SIZE).parameters())
    said = succeeds(capsys, "convert", str(file), str(folder), *NAMED)
    chosen = "took 'ema' (averaged), left 'model' (choose with --key)\n" if name == "ema.pt" else ""
    assert said == f"wrote {folder}: {count:,} parameters, unfused\n{chosen}"
    succeeds(capsys, "convert", str(folder), str(back), "--to", "published")
    assert same_bits(load_file(back), released)


def test_fused_folder_has_fewer_weights_and_the_same_images(
    released: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(released, tmp_path / "w.safetensors")
    succeeds(capsys, "convert", str(tmp_path / "w.safetensors"), str(tmp_path / "whole"), *NAMED)
    said = succeeds(capsys, "convert", str(tmp_path / "whole"), str(tmp_path / "fused"), "--fuse")
    whole, fused = udit.load(tmp_path / "whole"), udit.load(tmp_path / "fused")
    count = sum(p.numel() for p in fused.backbone.parameters())
    assert said == f"wrote {tmp_path / 'fused'}: {count:,} parameters, fused\n"
    assert count < sum(p.numel() for p in whole.backbone.parameters())
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.tensor([1, 2])
    with torch.no_grad():
        torch.testing.assert_close(fused.backbone(x, t, y), whole.backbone.eval()(x, t, y), rtol=1e-5, atol=1e-4)


class Trap:
    """Runs a command if it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("error")
def test_nothing_in_a_pickle_runs(tmp_path: Path, error_of: ErrorOf) -> None:
    sprung = tmp_path / "sprung"
    for file, write in {"new.pt": torch.save, "old.bin": lambda it, path: path.write_bytes(pickle.dumps(it))}.items():
        write({"model": Trap(str(sprung))}, tmp_path / file)
        line = error_of("convert", str(tmp_path / file), str(tmp_path / "out"), *NAMED)
        assert "and is not opened: a pickle can run code" in line
    assert not sprung.exists()
    assert not (tmp_path / "out").exists()


def test_files_without_weights_are_one_line_errors(
    released: dict[str, Tensor], tmp_path: Path, error_of: ErrorOf
) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"ema": {"a": 1}}, tmp_path / "numbers.pt")
    torch.save(released, tmp_path / "torn.pt")
    torn = (tmp_path / "torn.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(torn[: len(torn) // 2])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    wanted = {
        "list.pt": "holds a list and no tensors by name",
        "numbers.pt": "holds no state of this network; it holds 'ema'",
        "torn.pt": "is no readable torch file",
        "empty.safetensors": "empty.safetensors",
    }
    for name, said in wanted.items():
        assert said in error_of("convert", str(tmp_path / name), str(tmp_path / "out"), *NAMED)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="is not there; give a file of weights"):
        read_published(tmp_path / "nothing.pt")


def test_weights_of_another_size_name_what_is_missing(
    released: dict[str, Tensor], tmp_path: Path, error_of: ErrorOf
) -> None:
    save_file(released, tmp_path / "w.safetensors")
    line = error_of(
        "convert", str(tmp_path / "w.safetensors"), str(tmp_path / "out"), "--model", "U-DiT-S", "input_size=8"
    )
    assert line.startswith("these weights are of another model or size: missing: t_embedder_3.mlp.0.weight")
    assert "; unexpected: " in line or "; wrong shape: " in line
    assert not (tmp_path / "out").exists()


def test_targets_and_options_that_do_not_fit_are_refused(
    released: dict[str, Tensor], tmp_path: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(released, tmp_path / "w.safetensors")
    folder = str(tmp_path / "model")
    succeeds(capsys, "convert", str(tmp_path / "w.safetensors"), folder, *NAMED)
    assert "is a model with its own config" in error_of("convert", folder, str(tmp_path / "o"), "--model", "U-DiT-S")
    assert "nosuch.pt is not there; give a release's weights" in error_of(
        "convert", "nosuch.pt", "o", "--model", "U-DiT-S"
    )
    assert "no published form" in error_of("convert", folder, str(tmp_path / "o"), "--fuse", "--to", "published")
    assert "exists; choose another name" in error_of(
        "convert", folder, str(tmp_path / "w.safetensors"), "--to", "published"
    )
    assert "cannot write" in error_of(
        "convert", folder, str(tmp_path / "no" / "x.safetensors"), "--to", "published", code=1
    )
