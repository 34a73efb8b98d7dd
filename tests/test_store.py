"""Model folders describe themselves, are complete or absent, and nothing in them is executed."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import udit
from conftest import TINY, perturb, same_bits
from hub_stand_in import COMMIT, serving, use
from runs import train
from udit import hub, store
from udit.assemble import System, fingerprint
from udit.data.codec_config import VAECodec
from udit.data.vae import VAE_WEIGHTS, complete
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import RunError, UserError
from udit.files import temporary_sibling
from udit.models.catalog import find
from udit.run.system import SystemConfig
from vaes import tiny_vae

OneLine = Callable[[BaseException], str]


@pytest.fixture
def system(tiny: nn.Module) -> System:
    """A small system with class names."""
    return System(SystemConfig(model=tiny.config, id2label=tuple("abcde"), steps=7), tiny)


@pytest.fixture
def folder(system: System, tmp_path: Path) -> Path:
    """Its model folder."""
    return udit.save(system, tmp_path / "model")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out, "training.steps=4")
    return out


def test_system_comes_back_with_its_bits_and_settings(system: System, folder: Path) -> None:
    loaded = udit.load(folder)
    assert loaded.config == system.config
    assert same_bits(loaded.backbone.state_dict(), system.backbone.state_dict())
    assert not loaded.backbone.training
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_settings_of_every_kind_come_back(tmp_path: Path) -> None:
    model = udit.build("U-DiT-S", **TINY, learn_sigma=False)
    sampling = SamplingConfig(sampler="flow-heun", steps=7, guidance=1.5)
    config = SystemConfig(model=model.config, diffusion=FlowConfig(), sampling=sampling)
    assert udit.load(udit.save(System(config, model), tmp_path / "m")).config == config


def test_fused_model_is_saved_and_sampled_like_any_other(system: System, tmp_path: Path) -> None:
    fused = udit.load(udit.save(system.fused(), tmp_path / "fused"))
    how = SamplingConfig(steps=2)
    one, other = (next(s.generate([1, 2], [0, 3], sampling=how)) for s in (system, fused))
    assert (one.int() - other.int()).abs().max() <= 1
    assert same_bits(fused.fused().backbone.state_dict(), fused.backbone.state_dict())


def test_raw_weights_are_a_variant(system: System, tmp_path: Path) -> None:
    raw = perturb(udit.build(system.config.model), seed=5)
    folder = udit.save(system, tmp_path / "model", raw=raw)
    assert same_bits(udit.load(folder, weights="raw").backbone.state_dict(), raw.state_dict())
    assert same_bits(udit.load(folder).backbone.state_dict(), system.backbone.state_dict())


def test_folder_without_raw_weights_says_what_is_missing(folder: Path, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=r"model\.raw\.safetensors is missing") as error:
        udit.load(folder, weights="raw")
    one_line(error.value)


def test_saving_again_replaces_the_folder_whole(system: System, folder: Path) -> None:
    (folder / "model.raw.safetensors").write_bytes(b"old")
    perturb(system.backbone)
    udit.save(system, folder)
    assert same_bits(udit.load(folder).backbone.state_dict(), system.backbone.state_dict())
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_folder_of_something_else_is_not_replaced(system: System, tmp_path: Path, one_line: OneLine) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no model folder") as error:
        udit.save(system, tmp_path / "thesis")
    one_line(error.value)
    (tmp_path / "file").write_text("mine")
    with pytest.raises((UserError, RunError)) as refused:
        udit.save(system, tmp_path / "file")
    one_line(refused.value)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_refused_save_leaves_the_old_folder(system: System, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def refuse(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match=r"cannot write model folder .* No space left on device"):
        udit.save(perturbed(system), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def perturbed(system: System) -> System:
    """The system with other weights."""
    return System(system.config, perturb(udit.build(system.config.model), seed=9))


def test_leftover_of_a_killed_save_is_no_obstacle(system: System, tmp_path: Path) -> None:
    left = temporary_sibling(tmp_path / "model")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    udit.save(system, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_card_says_what_the_model_is_and_how_to_load_it(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: udit\n")
    assert "# U-DiT on 2x8x8, 5 classes" in card
    assert "udit.load(" in card


def test_hash_depends_on_every_weight(tiny: nn.Module) -> None:
    before = fingerprint(tiny)
    assert len(before) == 16
    assert fingerprint(tiny) == before
    for name, parameter in tiny.named_parameters():
        flat = parameter.detach().view(-1)
        kept = flat[-1].clone()
        flat[-1] += 1
        assert fingerprint(tiny) != before, name
        flat[-1] = kept
    scalar = nn.Module()
    scalar.register_buffer("scale", torch.tensor(2.0, dtype=torch.bfloat16))
    assert fingerprint(scalar) != before


# -- runs ----------------------------------------------------------------------------------------------------------


def test_run_folder_is_a_model_of_its_newest_checkpoint(run: Path) -> None:
    for weights, part in (("ema", "ema"), ("raw", "model")):
        system = udit.load(run, weights=weights)
        state = load_file(run / "checkpoints" / "step-00000004" / f"{part}.safetensors")
        assert same_bits(system.backbone.state_dict(), state)
        assert system.config.steps == 4
        assert system.config.id2label == tuple("0123456789")


def test_reading_a_run_with_a_damaged_checkpoint_moves_nothing(run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    os.truncate(out / "checkpoints" / "step-00000004" / "ema.safetensors", 99)
    assert udit.load(out).config.steps == 3
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


def test_run_without_a_checkpoint_says_so(run: Path, tmp_path: Path, one_line: OneLine) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(out / "checkpoints")
    first = store.read_run_config(out).training.save_every
    with pytest.raises(UserError, match=f"has no complete checkpoint yet.* first at step {first}, or") as error:
        udit.load(out)
    one_line(error.value)
    (out / "run.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"run\.yaml cannot be read as UTF-8") as error:
        udit.load(out)
    one_line(error.value)
    with pytest.raises(UserError, match="is no run folder"):
        store.read_run_config(tmp_path)


# -- what cannot be loaded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./here", "a/b/c", "../up", "~/home"])
def test_nothing_there_asks_for_a_folder_or_a_hub_id(name: str, one_line: OneLine) -> None:
    with pytest.raises(UserError, match="give a model folder, a run folder or a hub id") as error:
        udit.load(name)
    one_line(error.value)


@pytest.mark.parametrize("name", ["owner/name", "bad owner/na me"])
def test_unreachable_hub_or_missing_model_is_a_one_line_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"no folder '{name}', and the hub gave none: ") as error:
        udit.load(name)
    one_line(error.value)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Got: no connection\n" + "An error happened " * 20, "Got: no connection"),
        (
            "404 Client Error.\n\nRepository Not Found for url: a.\n" + "Please " * 40,
            "404 Client Error. Repository Not Found for url: a.",
        ),
        ("x" * 300, "x" * 200),
        ("", ""),
    ],
)
def test_the_hub_s_own_words_are_whole_lines(text: str, kept: str) -> None:
    with pytest.raises(UserError) as error, hub.errors_told("no folder", "go on"):
        raise OSError(text)
    assert str(error.value) == f"no folder: {kept}; go on"


def test_cached_hub_model_is_loaded_offline(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    cached = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(folder, cached / "snapshots" / "abc123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert udit.load("owner/name").config == udit.load(folder).config


@pytest.mark.slow
def test_hub_model_brings_its_vae_and_only_the_weights_that_are_asked_for(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = complete(VAECodec(source=str(tiny_vae(tmp_path / "model-vae"))))
    config = system.config.replace(codec=vae)
    raw = perturb(copy.deepcopy(system.backbone))
    folder = udit.save(System(config, system.backbone), tmp_path / "model", raw=raw)
    shutil.copytree(tmp_path / "model-vae", folder / "vae")
    (folder / "optimiser.safetensors").write_bytes(b"not asked for")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serving(files) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        for weights in ("ema", "raw"):
            loaded = udit.load("o/m", weights=weights)
            assert loaded.config.codec.source == str(tmp_path / "hf" / "models--o--m" / "snapshots" / COMMIT / "vae")
        first, last = hub.downloads()[:-1], hub.downloads()[-1]
    assert sorted(first) == ["README.md", "config.json", "config.json", VAE_WEIGHTS, "model.safetensors"]
    assert last == "model.raw.safetensors"


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, as a repository has them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "revision", "wanted"),
    [
        ("o/nosuch", None, "the hub gave none: it knows none of that name; check it, or set HF_TOKEN if it is private"),
        ("o/gated", None, "the hub gave none: it is gated; ask for access on its page there, and set HF_TOKEN or"),
        ("o/m", "v9", "the hub gave none: it has no revision 'v9'; give a branch, a tag or a commit of it"),
        ("o/m@v9", None, "the hub gave none: it has no revision 'v9'; give a branch, a tag or a commit of it"),
        ("o/m@v9", "v8", "the name says revision 'v9' and the call 'v8'; give one of them"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    name: str,
    revision: str | None,
    wanted: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_line: OneLine,
) -> None:
    with serving(files_of(folder)) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        with pytest.raises(UserError) as error:
            udit.load(name, revision=revision)
    assert one_line(error.value).startswith(f"no folder '{name}'")
    assert wanted in str(error.value)


def test_older_commit_is_loaded_by_its_name(
    system: System, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = udit.save(perturbed(system), tmp_path / "newer")
    with serving(files_of(folder)) as hub:
        hub.push("b" * 40, files_of(newer))
        use(hub, tmp_path / "hf", monkeypatch)
        for name, wanted in ((f"o/m@{COMMIT}", folder), ("o/m", newer)):
            assert same_bits(udit.load(name).backbone.state_dict(), udit.load(wanted).backbone.state_dict())


def test_weights_of_a_vae_without_its_config_stay_on_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({**files_of(folder), f"vae/{VAE_WEIGHTS}": b"of no use alone"}) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        udit.load("o/m")
        assert VAE_WEIGHTS not in hub.downloads()


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            {"config.json": b"{}", "export.json": b"{}", "model.onnx": b"a graph"},
            "o/m holds an exported graph and no weights; download it (`hf download o/m --local-dir FOLDER`) and `udit ",
        ),
        (
            {"model_index.json": b'{"_class_name": "DiTPipeline"}', "vae/config.json": b"{}"},
            "o/m holds diffusers' DiTPipeline; convert it once: `udit convert o/m FOLDER`, then give FOLDER",
        ),
        (
            {"transformer/config.json": b'{"_class_name": "DiTTransformer2DModel"}'},
            "o/m holds diffusers' DiTTransformer2DModel; convert it once: `udit convert o/m FOLDER`, then give FOLDER",
        ),
        ({"README.md": b"words"}, "o/m holds neither config.json nor run.yaml"),
    ],
)
def test_repository_of_something_else_says_what_it_is_before_its_weights_come(
    files: dict[str, bytes], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: OneLine
) -> None:
    weights = {"model.safetensors": b"large", f"vae/{VAE_WEIGHTS}": b"large"}
    with serving(files | weights) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        with pytest.raises(UserError) as error:
            udit.load("o/m")
        assert one_line(error.value).startswith(wanted)
        assert not [name for name in hub.downloads() if name.endswith(".safetensors")]


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, suffix: str, one_line: OneLine) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    with pytest.raises(UserError, match="is a pickle and is not opened here; convert it once: `udit convert ") as error:
        udit.load(path)
    one_line(error.value)
    assert not (tmp_path / "canary").exists()


def test_file_in_a_folders_place_asks_for_the_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file; give the model folder that holds it"):
        udit.load(folder / "model.safetensors")


def test_folder_without_a_config_is_no_model(tmp_path: Path, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=r"holds neither config\.json nor run\.yaml") as error:
        udit.load(tmp_path)
    one_line(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"model": 3}', b'{"model": {"family": "x"}}', b"[" * 20_000]
)
def test_invalid_config_is_a_one_line_error(folder: Path, content: bytes, one_line: OneLine) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json|model") as error:
        udit.load(folder)
    one_line(error.value)


def test_unknown_key_of_a_config_is_named(folder: Path, one_line: OneLine) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"smapling": {}}))
    with pytest.raises(UserError, match=r"unknown key .*smapling.*; did you mean 'sampling'") as error:
        udit.load(folder)
    one_line(error.value)


@pytest.mark.parametrize("size", [0, 1, 8, 300, -1])
def test_truncated_weights_are_a_one_line_error(folder: Path, size: int, one_line: OneLine) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(UserError, match=r"model\.safetensors is no readable safetensors file") as error:
        udit.load(folder)
    one_line(error.value)


def test_weights_of_another_model_are_a_one_line_error(folder: Path, one_line: OneLine) -> None:
    state = load_file(folder / "model.safetensors")
    name = next(iter(state))
    cases = [
        {key: value for key, value in state.items() if key != name},
        state | {"strange": torch.zeros(1)},
        state | {name: torch.zeros(7)},
    ]
    for case in cases:
        save_file(case, folder / "model.safetensors")
        with pytest.raises(UserError, match="holds the weights of another model") as error:
            udit.load(folder)
        one_line(error.value)


def test_catalogue_name_is_no_model_with_weights(one_line: OneLine) -> None:
    assert find("U-DiT-S")
    with pytest.raises(UserError) as error:
        udit.load("U-DiT-S")
    one_line(error.value)
