"""DiT in diffusers' layout becomes the paper's DiT, with equal outputs; what it cannot hold is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import udit
from conftest import ErrorOf, succeeds
from hub_stand_in import COMMIT, serving, use
from udit.convert.diffusers import find
from udit.errors import UserError
from udit.models.dit.published import NOTE
from vaes import tiny_vae

SIZE = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2}
SIZE |= {"sample_size": 8, "num_embeds_ada_norm": 10}


def dit(**changes: Any) -> Any:
    """Random weights of diffusers' DiT as a release's would be: every block has the same embeddings."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(**{**SIZE, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
        first = model.transformer_blocks[0].norm1.emb.state_dict()
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first)
    return model.eval()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline's folder, as on the hub: transformer, VAE, scheduler and class names."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

    root = tmp_path_factory.mktemp("pipeline")
    vae = AutoencoderKL.from_pretrained(tiny_vae(root / "vae-alone", channels=3, latent_channels=4))
    DiTPipeline(dit(), vae, DDIMScheduler(clip_sample=False)).save_pretrained(root / "dit")
    path = root / "dit" / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8")) | {
        "id2label": {str(i): f"class {i}, a name" for i in range(10)}
    }
    path.write_text(json.dumps(index), encoding="utf-8")
    return root / "dit"


def same_output(folder: Path) -> None:
    """Equal to diffusers' network with the frequencies and the epsilon of DiT's release in place of its own."""
    model, theirs = udit.load(folder).backbone, dit(norm_eps=1e-6)
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([7, 900]), torch.tensor([3, 10])
    with torch.no_grad():
        found, wanted = model(x, t, y), theirs(x, timestep=t, class_labels=y).sample
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5


def test_pipeline_is_read_with_its_vae_and_class_names(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeeds(capsys, "convert", str(pipeline), str(tmp_path / "out"))
    same_output(tmp_path / "out")
    config = udit.load(tmp_path / "out").config
    assert config.id2label[3] == "class 3, a name"
    assert (config.codec.kind, config.codec.source) == ("vae", str(pipeline / "vae"))
    assert config.codec.scale == 0.5
    assert (config.diffusion.kind, config.model.learn_sigma) == ("ddpm", True)


def test_transformer_alone_is_read_and_so_is_the_folder_around_it(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pipeline / "transformer", tmp_path / "around" / "transformer")
    for folder in (pipeline / "transformer", tmp_path / "around"):
        said = succeeds(capsys, "convert", str(folder), str(tmp_path / "out"))
        assert said.endswith(f"{NOTE}\n")
        same_output(tmp_path / "out")


def test_pickled_transformer_is_read(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(pipeline / "transformer", tmp_path / "dit"))
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    succeeds(capsys, "convert", str(folder), str(tmp_path / "out"))
    same_output(tmp_path / "out")


def test_loading_it_names_the_command_that_converts_it(pipeline: Path) -> None:
    for folder in (pipeline, pipeline / "transformer"):
        with pytest.raises(UserError, match=r"holds diffusers' DiT\w+; convert it once: `udit convert .* FOLDER`"):
            udit.load(folder)


def test_pickled_vae_of_a_pipeline_is_refused_unless_another_is_named(
    pipeline: Path, tmp_path: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(pipeline, tmp_path / "dit"))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    line = error_of("convert", str(folder), str(tmp_path / "out"))
    assert "pickled ones are not opened; name another with --vae" in line
    succeeds(capsys, "convert", str(folder), str(tmp_path / "out"), "--vae", str(pipeline / "vae"))
    assert udit.load(tmp_path / "out").config.codec.source == str(pipeline / "vae")


OTHERS = ("vae/diffusion_pytorch_model.bin", "transformer/diffusion_pytorch_model.fp16.safetensors", "README.md")


@pytest.mark.parametrize("parts", [1, 2])
def test_pipeline_on_the_hub_is_read_as_its_folder_is(
    parts: int, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {str(path.relative_to(pipeline)): path.read_bytes() for path in pipeline.rglob("*") if path.is_file()}
    if parts == 2:
        state = load_file(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
        del files["transformer/diffusion_pytorch_model.safetensors"]
        places = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(state)}
        for part in set(places.values()):
            own = {key: tensor for key, tensor in state.items() if places[key] == part}
            save_file(own, tmp_path / part)
            files[f"transformer/{part}"] = (tmp_path / part).read_bytes()
        index = json.dumps({"weight_map": places}).encode()
        files["transformer/diffusion_pytorch_model.safetensors.index.json"] = index
    with serving(files | dict.fromkeys(OTHERS, b"not needed")) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        assert "time frequencies" in succeeds(capsys, "convert", "o/m", str(tmp_path / "out"))
        fetched = [line.split(f"/resolve/{COMMIT}/")[1] for line in hub.asked if line.startswith("GET /o/m/resolve/")]
    assert sorted(fetched) == sorted(files)
    same_output(tmp_path / "out")
    config = udit.load(tmp_path / "out").config
    assert config.id2label[3] == "class 3, a name"
    assert config.codec.source == str(tmp_path / "hf" / "models--o--m" / "snapshots" / COMMIT / "vae")


def test_pipeline_on_the_hub_that_is_not_read_is_refused_before_its_weights_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"model_index.json": b'{"_class_name": "FluxPipeline"}', "transformer/config.json": b"{}"}
    with serving({**files, "transformer/diffusion_pytorch_model.safetensors": b"large"}) as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        with pytest.raises(UserError, match=r"^o/m holds diffusers' FluxPipeline; of its pipelines DiTPip"):
            find("o/m")
        assert sorted(hub.downloads()) == ["config.json", "model_index.json"]


def test_file_alone_is_read_as_the_model_that_is_named(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    file = str(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    size = ("width=32", "heads=4", "depth=2", "input_size=8", "num_classes=10")
    assert NOTE in succeeds(capsys, "convert", file, str(tmp_path / "out"), "--model", "DiT-S/2", *size)
    same_output(tmp_path / "out")
    line = error_of("convert", file, "out", "--model", "U-DiT-S")
    assert "holds diffusers' DiTTransformer2DModel and the model is of the family U-DiT" in line
    assert "wrong shape" in error_of("convert", file, "out", "--model", "DiT-S/2", *size[1:])


def changed(folder: Path, target: Path, file: str, **values: Any) -> Path:
    """A copy of a folder with some values of a JSON file changed."""
    shutil.copytree(folder, target)
    path = target / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("file", "values", "wanted"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "holds diffusers' FluxPipeline; of its pipelines"),
        ("transformer/config.json", {"_class_name": "Transformer2DModel"}, "holds Transformer2DModel; of diffusers'"),
        ("transformer/config.json", {"activation_fn": "geglu"}, "says activation_fn 'geglu' and the paper's DiT has"),
        ("transformer/config.json", {"norm_eps": 1e-4}, "says norm_eps 0.0001 and the paper's DiT has 1e-06; not read"),
        ("transformer/config.json", {"out_channels": 5}, "has 5 out_channels for 4 in_channels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "says prediction_type 'v_prediction'"),
    ],
)
def test_what_the_papers_dit_has_not_is_refused_by_name(
    pipeline: Path, tmp_path: Path, file: str, values: dict[str, Any], wanted: str, error_of: ErrorOf
) -> None:
    folder = changed(pipeline, tmp_path / "dit", file, **values)
    assert wanted in error_of("convert", str(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            lambda state: state["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"].add_(1),
            "has an embedding of its own in block 1 (norm1.emb.class_embedder.embedding_table.weight)",
        ),
        (lambda state: state.pop("transformer_blocks.1.attn1.to_k.bias"), "lacks attn1.to_k of blocks.1.attn.qkv.bias"),
        (lambda state: state.pop("transformer_blocks.0.ff.net.2.bias"), "missing: blocks.0.mlp.fc2.bias"),
        (
            lambda state: state.update({"transformer_blocks.0.attn2.to_q.weight": torch.ones(1)}),
            "holds 'attn2.to_q.weight' in block 0, which the paper's DiT has not",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    pipeline: Path, tmp_path: Path, change: Callable[[Any], object], wanted: str, error_of: ErrorOf
) -> None:
    folder = Path(shutil.copytree(pipeline / "transformer", tmp_path / "dit"))
    state = {key: value.clone() for key, value in load_file(folder / "diffusion_pytorch_model.safetensors").items()}
    change(state)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    assert wanted in error_of("convert", str(folder), str(tmp_path / "out"))
