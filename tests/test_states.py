"""Weights are found under any name that programs of the field save them by; what was taken and left is said."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

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
    "FSDP, recomputed": (
        {
            "model": {"a._fsdp_wrapped_module.weight": RAW["a.weight"], "a._fsdp_wrapped_module.bias": RAW["a.bias"]}
            | {"blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.a.weight": RAW["blocks.0.a.weight"]},
            "ema": {key.replace("a.", "a._orig_mod.module.", 1): value for key, value in AVERAGE.items()},
        },
        "ema",
        ("model",),
    ),
    "LDM's": (
        {
            "state_dict": {
                **under("model.diffusion_model.", RAW),
                **{f"model_ema.diffusion_model{key.replace('.', '')}": value for key, value in AVERAGE.items()},
                "model_ema.decay": torch.tensor(0.9999),
                "model_ema.num_updates": torch.tensor(7),
                "first_stage_model.encoder.a.weight": torch.zeros(3),
            }
        },
        "state_dict.model_ema.diffusion_model",
        ("state_dict.model.diffusion_model",),
    ),
    "LDM's around the network": (
        {
            "state_dict": {
                **RAW,
                **{f"model_ema.{key.replace('.', '')}": value for key, value in AVERAGE.items()},
                "model_ema.decay": torch.tensor(0.9999),
            }
        },
        "state_dict.model_ema",
        ("state_dict",),
    ),
    "Lightning's WeightAveraging": (
        {
            "state_dict": under("net.", AVERAGE),
            "current_model_state": under("net.", RAW),
            "averaging_state": {"n_averaged": torch.tensor(9)},
        },
        "state_dict.net",
        ("current_model_state.net",),
    ),
    "torch's AveragedModel": (
        {"model": RAW, "second": {"n_averaged": torch.tensor(9), **under("module.", AVERAGE)}},
        "second",
        ("model",),
    ),
    "a list of several": ({"model": RAW, "emas": [AVERAGE, OTHER]}, "emas.0", ("model",)),
    "beside an optimiser's": ({"exp_avg": RAW, "model": RAW, "polyak": AVERAGE}, "polyak", ("model", "exp_avg")),
    "deep": ({"trainer": {"state": {"net": RAW, "averaged_net": AVERAGE}}}, "trainer.state.averaged_net", ()),
    "alone": (AVERAGE, ".", ()),
}


@pytest.mark.parametrize("name", FILES)
def test_average_is_taken_and_the_rest_is_named(name: str) -> None:
    content, taken, left = FILES[name]
    choice = choose(content, RAW.keys(), where=name)
    assert same_bits(choice.taken.tensors, AVERAGE)
    assert choice.taken.averaged == (name != "alone")
    assert choice.taken.name == taken
    assert set(left) <= set(choice.left)


NAMES = ("model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "nnet_ema", "ema", "ModelEMA", "modelEma")
NAMES += ("EMAModel", "emas", "shadow", "polyak", "net_swa", "ema_0.9999")


@pytest.mark.parametrize("name", NAMES)
def test_average_is_found_by_its_name_alone(name: str, tmp_path: Path) -> None:
    torch.save({"model": RAW, name: AVERAGE, "step": 9}, tmp_path / "x.pt")
    choice = read_published(tmp_path / "x.pt")
    assert same_bits(choice.taken.tensors, AVERAGE)
    assert str(choice) == f"took {name!r} (averaged), left 'model' (choose with --key)"


@pytest.mark.parametrize("nothing", [None, {}, []])
def test_average_of_nothing_is_said(nothing: object) -> None:
    choice = choose({"model": RAW, "ema": nothing}, RAW.keys(), where="x.pt")
    assert same_bits(choice.taken.tensors, RAW)
    assert str(choice) == "took 'model' (not averaged); 'ema' is empty"


def test_words_that_only_hold_the_letters_are_no_averages() -> None:
    held = dict.fromkeys(("schema", "remat", "net", "teacher", "exp_avg", "n_averaged"), RAW)
    choice = choose(held, RAW.keys(), where="x.pt")
    assert not choice.taken.averaged
    assert len(choice.left) == 5


def test_key_chooses() -> None:
    content = {"model": RAW, "ema": AVERAGE}
    assert same_bits(choose(content, RAW.keys(), key="model", where="x.pt").taken.tensors, RAW)
    with pytest.raises(UserError, match=r"^x.pt holds no state 'modle'; did you mean 'model'\?$"):
        choose(content, RAW.keys(), key="modle", where="x.pt")


LIST = [2 * value for value in RAW.values()]
UNREAD: dict[str, tuple[dict[str, Any], str]] = {
    "diffusers'": ({"model": RAW, "ema": {"decay": 0.9, "shadow_params": LIST}}, "3 tensors under 'ema.shadow_params'"),
    "beside it": ({"model": RAW, "shadow_params": LIST}, "3 tensors under 'shadow_params' as a list without names"),
    "a bare list": ({"model": RAW, "ema": LIST}, "3 tensors under 'ema' as a list without names"),
    "NeMo's": ({"model": RAW, "optimizer_states": [{"ema": tuple(LIST)}]}, "3 tensors under 'optimizer_states.0.ema'"),
    "a vector": ({"model": RAW, "ema": torch.ones(6)}, "all weights in one tensor 'ema', without names"),
    "other names": ({"model": RAW, "ema": {"x": torch.ones(3), "step": 1}}, "tensors under 'ema', none by a name of"),
    "in a state": ({"model": {**RAW, "net_ema.x": torch.ones(3)}}, "tensors under 'model.net_ema', none by a name"),
    "of some tensors": (
        {"model": RAW, "ema": {"a.bias": torch.ones(1)}},
        "under 'ema' that lacks a.weight, blocks",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_raw_weights_beside_an_average_that_is_not_read_are_taken_only_by_their_name(name: str) -> None:
    content, said = UNREAD[name]
    with pytest.raises(UserError, match=r"^x\.pt holds an average .*'model', not averaged, with --key model$") as error:
        choose(content, RAW.keys(), where="x.pt")
    assert said in str(error.value)
    assert same_bits(choose(content, RAW.keys(), key="model", where="x.pt").taken.tensors, RAW)


def test_the_file_itself_has_a_name_for_key() -> None:
    content = {**RAW, "ema": LIST}
    with pytest.raises(UserError, match=r"or take '\.', not averaged, with --key \.$"):
        choose(content, RAW.keys(), where="x.pt")
    choice = choose(content, RAW.keys(), key=".", where="x.pt")
    assert same_bits(choice.taken.tensors, RAW)
    with pytest.raises(UserError, match=r"^x.pt holds no state 'ema'; 3 tensors under 'ema' as a list without names"):
        choose(content, RAW.keys(), key="ema", where="x.pt")


def test_numbers_of_an_average_are_no_weights() -> None:
    content = {"model": RAW, "loss_ema": torch.ones(2), "ema": {"decay": torch.tensor(0.9)}, "opt": {"exp_avg": LIST}}
    assert same_bits(choose(content, RAW.keys(), where="x.pt").taken.tensors, RAW)


def test_what_averaging_leaves_out_comes_from_the_raw_state() -> None:
    part = {key: value for key, value in AVERAGE.items() if key != "a.bias"}
    choice = choose({"model": RAW, "ema": part}, RAW.keys(), untrained={"a.bias"}, where="x.pt")
    assert same_bits(choice.taken.tensors, part | {"a.bias": RAW["a.bias"]})
    wanted = "took 'ema' (averaged; a.bias of 'model', as averages leave out what is not trained), left 'model'"
    assert str(choice) == f"{wanted} (choose with --key)"
    with pytest.raises(UserError, match=r"an average under 'ema' that lacks a\.bias of this network"):
        choose({"model": RAW, "ema": part}, RAW.keys(), untrained={"a.weight"}, where="x.pt")


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
    del half["pos_embed"]  # as an average of the parameters alone
    torch.save({"model": under("module.", raw), "model_ema": half}, file)
    assert "(averaged; pos_embed of 'model', as averages leave out what" in succeeds(capsys, *words)
    half["pos_embed"] = raw["pos_embed"]
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


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"model": RAW, "model_ema": AVERAGE}, AVERAGE),
        ({"opt": {"exp_avg": RAW["a.weight"]}, "net": {"module": OrderedDict(RAW)}}, RAW),
        ({"model": RAW, "ema": {"decay": 0.9, "net": {k: Parameter(v) for k, v in AVERAGE.items()}}}, AVERAGE),
    ],
)
def test_refusal_names_what_stands_in_the_way_and_a_way_out(
    content: State, wanted: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / """it's "x".pt"""
    torch.save({**content, "config": Settings()}, path)
    with pytest.raises(UserError) as error:
        read_file(path)
    line = str(error.value)
    assert f"holds {Settings.__module__}.Settings beside tensors and is not opened" in line
    assert line.isprintable()
    python, option, code = shlex.split(line.partition("if you trust it: ")[2])
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert same_bits(read_published(tmp_path / "tensors.pt").taken.tensors, wanted)


def test_refusal_of_a_file_whose_states_are_unknown_names_none(tmp_path: Path) -> None:
    content: dict[str, Any] = {"config": Settings(), **RAW}
    content["itself"] = content
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"weights_only=False\)\[KEY\], .*, with the name of its state for KEY$"):
        read_file(tmp_path / "x.pt")


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
    for name in ("nofile.pt", "nofile", "no/file"):
        assert error_of("convert", name, "out", "--model", "DiT-S/2").startswith(f"{name} is not there; give")
    assert error_of("convert", "nofile", "out").startswith("nofile is not there; give")
