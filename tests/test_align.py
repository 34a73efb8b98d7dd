"""Alignment with a vision model (``training.align``): its losses, where it looks, and that no model keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import succeeds
from runs import RECIPE, image_folder, metrics, small_run, state_hash, train
from udit import dist
from udit.data.cache_config import TeacherFacts
from udit.data.latents import LatentCache
from udit.diffusion.alignment import alignment_loss, manifold_loss
from udit.errors import UserError
from udit.evaluation.teachers import load_teacher
from udit.models.catalog import find
from udit.run.config import AlignConfig
from udit.run.recipes import load_run
from udit.training.align import blocks_of, chosen, resampled
from udit.training.encoding import encode
from udit.training.memory import estimate
from udit.training.trainer import Trainer

OneLine = Callable[[BaseException], str]
U = ["model.depths=[1,1,1]", "training.align.hidden=12", "training.align.manifold=3"]


class Stripes:
    """A teacher of five channels on a map of 3x3, other for an image and for its mirror image."""

    facts = TeacherFacts(name="stripes", sha256="0" * 64, side=8, shape=(5, 3, 3))

    def __call__(self, pixels: Tensor) -> Tensor:
        part = pixels[:, :, :3, :3].float() / 255
        return torch.cat([part * (k + 1) - k / 3 for k in range(5)], dim=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a run on a cache with the features of ``Stripes``."""
    root = tmp_path_factory.mktemp("align")
    words = image_folder(root / "data")
    encode(small_run(root / "unused", *words), root / "cache", teacher=Stripes(), shard_size=7, world=dist.World())
    return ["data.kind=folder", f"latents={root / 'cache'}"]


def test_alignment_asks_for_directions_alone() -> None:
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    assert alignment_loss(x, 3 * x).tolist() == pytest.approx([-1, -1])
    assert alignment_loss(x, -x).tolist() == pytest.approx([1, 1])


def test_manifold_loss_asks_for_similarities_alone() -> None:
    x = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = x @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    for scope in ("image", "batch"):
        assert float(manifold_loss(x, turned, scope).max()) < 1e-24
    first, second = torch.eye(2, dtype=torch.float64)
    apart, alike = torch.stack([first, second])[None], torch.stack([first, first])[None]
    assert manifold_loss(apart, alike).tolist() == pytest.approx([0.5])  # two of four cosines are 1 and not 0


def test_manifold_loss_of_a_batch_compares_tokens_of_different_images() -> None:
    first, second = torch.eye(2, dtype=torch.float64)
    one, other = torch.stack([first[None], first[None]]), torch.stack([first[None], second[None]])
    assert manifold_loss(one, other, "image").tolist() == [0, 0]
    assert manifold_loss(one, other, "batch").tolist() == pytest.approx([0.5, 0.5])


BLOCKS = {
    "U-DiT-tiny": (6, "encoder.1.blocks.0", 32, (4, 4), 2),
    "DiT-tiny": (4, "blocks.1", 64, (4, 4), 1),
    "U-ViT-tiny": (5, "blocks.1", 64, (4, 4), 1),
    "MPDiT-tiny": (4, "blocks.1", 64, (4, 4), 2),
    "HDiT-tiny": (4, "middle.blocks.0", 64, (4, 4), 2),
    "DiMSUM-tiny": (4, "blocks.1", 64, (8, 8), 1),
    "ADM-tiny": (6, "decoder.1.blocks.0", 64, (4, 4), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_the_middle_block_is_found_in_the_order_of_running(name: str) -> None:
    count, *wanted = BLOCKS[name]
    config = find(name).config
    assert len(blocks_of(config)) == count
    block, upsample = chosen(AlignConfig(), config)
    assert [block.name, block.width, block.grid, upsample] == wanted


def test_features_are_averaged_where_their_map_shrinks() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resampled(x, (4, 4)) is x
    assert resampled(x, (1, 1)).item() == pytest.approx(7.5)


def test_a_cache_holds_features_of_images_and_their_mirror_images(data: list[str]) -> None:
    cache = LatentCache(Path(data[1].removeprefix("latents=")))
    cache.verify()
    for mirrored in (False, True):
        pixels = torch.from_numpy(cache.read(9, mirrored))[None]
        wanted = Stripes()(pixels)[0].half()
        assert torch.equal(torch.from_numpy(cache.features(9, mirrored)), wanted)


@pytest.mark.slow
def test_alignment_is_trained_and_stays_out_of_the_model(data: list[str], tmp_path: Path) -> None:
    train(tmp_path / "with", *data, *U, "training.steps=3")
    train(tmp_path / "without", *data, "model.depths=[1,1,1]", "training.steps=3")
    lines = metrics(tmp_path / "with")
    assert all(-0.5 <= line["align"] <= 0.5 + 0.5 * 3 * 4 for line in lines)
    assert "align" not in metrics(tmp_path / "without")[0]
    first = [metrics(tmp_path / name)[0] for name in ("with", "without")]
    assert first[0]["loss"] == first[1]["loss"], "the network starts, and is asked, as without"
    assert first[0]["grad_norm"] > first[1]["grad_norm"]
    tensors = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("with", "without")]
    assert tensors[0].keys() == tensors[1].keys()
    assert any(not torch.equal(tensor, tensors[1][key]) for key, tensor in tensors[0].items())
    held = load_file(next((tmp_path / "with" / "checkpoints").iterdir()) / "projector.safetensors")
    assert [tuple(held[f"{i}.weight"].shape) for i in (0, 2, 4)] == [(12, 16), (12, 12), (5, 12)]


@pytest.mark.slow
def test_resuming_goes_on_with_the_projector(data: list[str], tmp_path: Path) -> None:
    more = ["training.accumulation=2"]
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    train(unbroken, *data, *U, *more, "training.steps=6")
    train(resumed, *data, *U, *more, "training.steps=3")
    train(resumed, *data, *U, *more, "training.steps=6")
    assert state_hash(unbroken) == state_hash(resumed)
    assert metrics(unbroken)[3:] == metrics(resumed)[3:]
    newest = [sorted((out / "checkpoints").iterdir())[-1] for out in (unbroken, resumed)]
    for name in ("projector", "projector-optim"):
        one, other = (load_file(path / f"{name}.safetensors") for path in newest)
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [["training.checkpoint_activations=true"], ["training.checkpoint_activations=selective"]]
)
def test_recomputed_activations_give_the_same_gradients(data: list[str], tmp_path: Path, more: list[str]) -> None:
    for name, words in (("stored", []), ("recomputed", more)):
        train(tmp_path / name, *data, *U, *words, "training.steps=2")
    assert metrics(tmp_path / "stored") == metrics(tmp_path / "recomputed")


def test_repa_keeps_its_own_projectors(data: list[str], tmp_path: Path, one_line: OneLine) -> None:
    words = [*data, "model=REPA-tiny", "training.steps=2", "training.batch_size=6", "training.align.weight=0.5"]
    words += [f"out={tmp_path / 'run'}", "sampling.steps=1"]
    with pytest.raises(UserError) as refused:
        Trainer(load_run("digits", words), dist.World())
    assert "set model.projectors.widths=[5]" in one_line(refused.value)
    run = load_run("digits", [*words, "model.projectors.widths=[5]"])
    trainer = Trainer(run, dist.World())
    before = {name: tensor.clone() for name, tensor in trainer.learner.model.state_dict().items()}
    assert trainer.learner.alignment is not None
    assert trainer.learner.alignment.tensors() == {}
    trainer.train(progress=False)
    after = load_file(tmp_path / "run" / "model" / "model.raw.safetensors")
    assert after.keys() == before.keys(), "the model has its projectors, and no other"
    for name in ("projectors.0.0.weight", "projectors.0.4.bias"):
        assert not torch.equal(after[name], before[name]), "they are trained"


def test_what_cannot_be_aligned_is_one_line(data: list[str], tmp_path: Path, one_line: OneLine) -> None:
    def refusal(*words: str) -> str:
        with pytest.raises(UserError) as refused:
            Trainer(small_run(tmp_path / "x", *words), dist.World())
        return one_line(refused.value)

    assert "needs a vision model's features, and latents is not given" in refusal(*U)
    plain = tmp_path / "plain"
    encode(small_run(tmp_path / "unused", *image_folder(tmp_path / "data")), plain, world=dist.World())
    assert "has none; write them with `udit encode" in refusal("data.kind=folder", f"latents={plain}", *U)
    assert "has 6 blocks" in refusal(*data, *U, "training.align.after_block=7")


def test_a_network_with_projectors_says_where_they_are(one_line: OneLine) -> None:
    with pytest.raises(UserError) as refused:
        chosen(AlignConfig(after_block=2), find("REPA-tiny").config)
    assert "set model.projectors.after_block" in one_line(refused.value)


@pytest.mark.slow
def test_memory_of_a_step_counts_the_projector(data: list[str], tmp_path: Path) -> None:
    words = [*data, "model.depths=[1,1,1]"]
    without = estimate(small_run(tmp_path, *words))
    aligned = estimate(small_run(tmp_path, *words, "training.align.hidden=12"))
    projector = 4 * (16 * 12 + 12 + 12 * 12 + 12 + 12 * 5 + 5)
    assert aligned.weights - without.weights == projector
    assert aligned.optimizer - without.optimizer == 2 * projector
    assert aligned.averages == without.averages
    assert aligned.activations > without.activations


def test_the_judge_is_a_teacher(tmp_path: Path) -> None:
    run = small_run(
        tmp_path / "unused", *image_folder(tmp_path / "data"), "evaluation.judge_steps=1", "data.flip=false"
    )
    teacher = load_teacher("judge", run)
    cache = encode(run, tmp_path / "cache", teacher=teacher, world=dist.World())
    assert (cache.teacher, teacher.facts.shape) == ("judge", (32, 4, 4))
    manifest = json.loads((tmp_path / "cache" / "plan.json").read_text())
    assert manifest["teacher"]["sha256"] == teacher.facts.sha256


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("efficientnet", "did you mean 'efficientnet-lite0'?"),
        ("dinov2", "give dinov2:SOURCE, a folder or a hub id"),
        ("judge:x", "give judge alone"),
    ],
)
def test_a_teacher_that_is_none_is_one_line(tmp_path: Path, one_line: OneLine, words: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load_teacher(words, small_run(tmp_path))
    assert told in one_line(refused.value)


@pytest.mark.slow  # needs the extra [align]
def test_efficientnet_and_dinov2_make_maps(tmp_path: Path, one_line: OneLine) -> None:
    run = small_run(tmp_path)
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    teacher = load_teacher("efficientnet-lite0", run)
    made = teacher(pixels)
    assert teacher.facts.shape == made.shape[1:] == (1280, 7, 7)
    assert torch.isfinite(made).all()
    assert not torch.allclose(made, teacher(pixels.flip(-1)))
    from transformers import Dinov2Config, Dinov2Model

    tiny = Dinov2Config(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(tiny).save_pretrained(tmp_path / "dino")
    found = load_teacher(f"dinov2:{tmp_path / 'dino'}", run)
    assert found.facts.shape == found(pixels).shape[1:] == (12, 2, 2)
    with pytest.raises(UserError) as refused:
        load_teacher(f"dinov2:{tmp_path / 'none'}", run)
    assert "cannot be read from" in one_line(refused.value)


@pytest.mark.slow  # compiles
def test_a_compiled_network_is_aligned_too(data: list[str], tmp_path: Path) -> None:
    for name, words in (("eager", []), ("compiled", ["training.compile=true"])):
        train(tmp_path / name, *data, *U, *words, "training.steps=2")
    eager, compiled = metrics(tmp_path / "eager"), metrics(tmp_path / "compiled")
    assert [line["align"] for line in compiled] == pytest.approx([line["align"] for line in eager], rel=1e-3)


@pytest.mark.slow  # two processes
def test_two_ranks_train_the_same_projector(data: list[str], tmp_path: Path) -> None:
    from runs import launch

    for ranks in (1, 2):
        words = [*U[1:], "training.steps=3", "training.save_every=3", "training.check_every=1", "training.batch_size=6"]
        processes = launch(tmp_path / str(ranks), *data, *words, ranks=ranks)
        assert [process.wait(timeout=200) for process in processes] == [0] * ranks
    one, two = (metrics(tmp_path / str(ranks)) for ranks in (1, 2))
    assert [line["align"] for line in two] == pytest.approx([line["align"] for line in one], rel=1e-3)


def test_encode_tells_how_to_train_on_the_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import udit.evaluation.teachers as teachers

    def stripes(*_: Any) -> Stripes:
        return Stripes()

    monkeypatch.setitem(teachers.TEACHERS, "judge", stripes)  # type: ignore[arg-type]
    words = image_folder(tmp_path / "data", 3)
    out = ["--teacher", "judge", "--out", str(tmp_path / "cache"), "--no-progress"]
    told = succeeds(capsys, "encode", RECIPE, *words, *out)
    assert "with features of stripes" in told
    assert told.strip().endswith(f"latents={tmp_path / 'cache'} training.align={{}}")
