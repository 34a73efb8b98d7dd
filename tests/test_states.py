"""Weights are found under any name that programs of the field save them by; what was taken and left is said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import udit
from conftest import ErrorOf, perturb, same_bits, succeeds
from udit.convert.files import read_file
from udit.convert.states import choose, read_published
from udit.errors import UserError
from udit.models.published import export_published

State = dict[str, Tensor]
SIZE = {"width": 16, "heads": 2, "depth": 2, "input_size": 8, "num_classes": 10}
NAMED = ["--model", "DiT-S/2", "width=16", "heads=2", "depth=2", "input_size=8", "num_classes=10"]
RAW: State = {"a.weight": torch.ones(3), "a.bias": torch.ones(1), "blocks.0.a.weight": torch.ones(2)}
AVERAGE: State = {key: 2 * value for key, value in RAW.items()}
OTHER: State = {"param_groups.lr": torch.zeros(1), "exp_avg": torch.zeros(3)}


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


FILES: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "k-diffusion's": ({"model": RAW, "model_ema": AVERAGE, "opt": OTHER, "step": 9}, "model_ema", ("model",)),
    "ema_model": ({"model": RAW, "ema_model": AVERAGE}, "ema_model", ("model",)),
    "ema_state_dict": ({"state_dict": RAW, "ema_state_dict": AVERAGE}, "ema_state_dict", ("state_dict",)),
    "timm's": ({"state_dict": RAW, "state_dict_ema": AVERAGE, "epoch": 3}, "state_dict_ema", ("state_dict",)),
    "U-ViT's": ({"nnet": RAW, "nnet_ema": AVERAGE}, "nnet_ema", ("nnet",)),
    "a wrapper's": (
        {"model": RAW, "ema": {**under("online_model.", RAW), **under("ema_model.", AVERAGE), "step": torch.zeros(1)}},
        "ema.ema_model",
        ("model", "ema.online_model"),
    ),
    "Lightning's": (
        {"state_dict": {**under("net.", RAW), **under("net_ema.", AVERAGE)}, "callbacks": {}},
        "state_dict.net_ema",
        ("state_dict.net",),
    ),
    "DDP, compiled": ({"ema": under("module._orig_mod.", AVERAGE), "model": under("module.", RAW)}, "ema", ("model",)),
    "deep": ({"trainer": {"state": {"net": RAW, "averaged_net": AVERAGE}}}, "trainer.state.averaged_net", ()),
    "alone": (AVERAGE, ".", ()),
}


@pytest.mark.parametrize("name", FILES)
def test_average_is_taken_and_the_rest_is_named(name: str) -> None:
    content, taken, left = FILES[name]
    choice = choose(content, RAW.keys(), where=name)
    assert same_bits(choice.taken.tensors, AVERAGE)
    assert choice.taken.name == taken
    assert set(left) <= set(choice.left)


@pytest.mark.parametrize("name", ["model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "nnet_ema", "ema"])
def test_average_is_found_by_its_name_alone(name: str, tmp_path: Path) -> None:
    torch.save({"model": RAW, name: AVERAGE, "step": 9}, tmp_path / "x.pt")
    choice = read_published(tmp_path / "x.pt")
    assert same_bits(choice.taken.tensors, AVERAGE)
    assert str(choice) == f"took {name!r} (averaged), left 'model' (choose with --key)"


def test_average_of_none_is_said() -> None:
    choice = choose({"model": RAW, "ema": None}, RAW.keys(), where="x.pt")
    assert same_bits(choice.taken.tensors, RAW)
    assert str(choice) == "took 'model' (not averaged); 'ema' is empty"


def test_words_that_only_hold_the_letters_are_no_averages() -> None:
    choice = choose({"schema": RAW, "remat": RAW, "net": RAW}, RAW.keys(), where="x.pt")
    assert not choice.taken.averaged


def test_key_chooses() -> None:
    content = {"model": RAW, "ema": AVERAGE}
    assert same_bits(choose(content, RAW.keys(), key="model", where="x.pt").taken.tensors, RAW)
    with pytest.raises(UserError, match=r"^x.pt holds no state 'modle'; did you mean 'model'\?$"):
        choose(content, RAW.keys(), key="modle", where="x.pt")


def test_unknown_keys_within_the_state_are_kept_for_the_refusal() -> None:
    choice = choose({"ema": {**AVERAGE, "head.weight": torch.ones(1)}}, RAW.keys(), where="x.pt")
    assert set(choice.taken.tensors) == {*RAW, "head.weight"}


def test_list_without_names_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match=r"holds 2 tensors under 'ema\.shadow_params' as a list without names"):
        choose({"ema": {"decay": 0.9, "shadow_params": [torch.ones(1)] * 2}}, RAW.keys(), where="x.pt")


def test_command_says_what_it_took_and_takes_what_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    raw = export_published(perturb(udit.build("DiT-S/2", **SIZE)))
    file = tmp_path / "run.pt"
    torch.save(
        {"model": under("module.", raw), "model_ema": under("module.", {k: v / 2 for k, v in raw.items()})}, file
    )
    words = ("convert", str(file), str(tmp_path / "out"), *NAMED)
    line = error_of(*words)  # the position table is no weight
    assert "pos_embed" in line
    raw |= {"pos_embed": raw["pos_embed"]}
    half = {k: v if k == "pos_embed" else v / 2 for k, v in raw.items()}
    torch.save({"model": under("module.", raw), "model_ema": under("module.", half)}, file)
    assert succeeds(capsys, *words).endswith("took 'model_ema' (averaged), left 'model' (choose with --key)\n")
    assert same_bits(export_published(udit.load(tmp_path / "out").backbone), half)
    assert "took 'model' (not averaged), left 'model_ema'" in succeeds(capsys, *words, "--key", "model")
    assert same_bits(export_published(udit.load(tmp_path / "out").backbone), raw)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_settings_paths_and_numbers_beside_tensors_are_read(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(out=Path("x"), lr=1e-4),
        "path": PurePosixPath("a/b"),
        "there": PureWindowsPath("a"),
        "best": np.float64(1.5),
        "seen": np.int64(7),
        "half": np.float32(0.5),
        "done": np.bool_(True),
    }
    torch.save({"ema": RAW, **beside}, tmp_path / "x.pt")
    assert {key: read_file(tmp_path / "x.pt")[key] for key in beside} == beside


class Settings:
    """A program's own class in its checkpoint."""


def test_refusal_names_what_stands_in_the_way_and_a_way_out(tmp_path: Path) -> None:
    torch.save({"ema": RAW, "config": Settings()}, tmp_path / "x.pt")
    with pytest.raises(UserError) as error:
        read_file(tmp_path / "x.pt")
    line = str(error.value)
    assert f"holds {Settings.__module__}.Settings beside tensors and is not opened" in line
    assert "weights_only=False" in line
    assert line.isprintable()


def test_parts_of_a_state_are_read_together(tmp_path: Path) -> None:
    places = {key: f"part-{i}.safetensors" for i, key in enumerate(RAW)}
    for key, place in places.items():
        save_file({key: RAW[key]}, tmp_path / place)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert same_bits(read_published(index).taken.tensors, RAW)
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}), encoding="utf-8")
    with pytest.raises(UserError, match="names a part outside of its folder"):
        read_published(index)


def test_file_that_is_not_there_is_said(error_of: Callable[..., str]) -> None:
    assert error_of("convert", "nofile.pt", "out", "--model", "DiT-S/2").startswith("nofile.pt is not there; give")
