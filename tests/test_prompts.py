"""Models that take texts, from captions to images: training, encoding, prompts on the command line and in Python."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udit
from conftest import ErrorOf, perturb, succeeds
from text_models import language_model
from udit import panel
from udit.assemble import System
from udit.data.captions import captions_of
from udit.data.sources import parts_of
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import UserError
from udit.evaluation.image_set import ImageSet
from udit.evaluation.shards import held_out_captions
from udit.images import read_settings
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.run.system import SystemConfig
from udit.text.config import TextConfig
from udit.text.files import complete, with_layers
from udit.training import preview
from udit.training.trainer import Trainer


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("language") / "model")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("wide") / "model", width=48)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(12):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text("a cat\none cat\n" if i % 2 else "a dog above a cat\n")
    return root


@pytest.fixture(autouse=True)
def _in_a_new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def overrides(images: Path, language: Path, out: Path, *more: str) -> list[str]:
    return [
        *("data.kind=folder", f"data.root={images}", "data.size=8", "data.channels=1", "data.captions=files"),
        *(
            "data.flip=false",
            "data.test_share=0.25",
            "data.judge_share=0",
            "model.name=U-DiT-text-tiny",
            "model.depth=2",
        ),
        *("model.width=16", "model.heads=2", f"text.source={language}", "text.tokens=6", "diffusion.kind=flow"),
        *("training.steps=3", "training.batch_size=4", "training.lr_warmup=0", "sampling.steps=2", f"out={out}"),
        *("training.save_every=2", *more),
    ]


def run_of(images: Path, language: Path, out: Path, *more: str) -> Run:
    return load_run("digits", overrides(images, language, out, *more))


def system_of(language: Path | None, name: str = "U-DiT-text-tiny", **model: Any) -> System:
    """A model of random weights that takes texts; of classes where ``language`` is None."""
    text, network_of = None, udit.build
    if language is not None:
        text = complete(TextConfig(source=str(language), tokens=6))
        model |= {"context": {"tokens": 6, "width": text.width}, "num_classes": 0}
    network = perturb(network_of(name, learn_sigma=False, **model))
    text = text and with_layers(text, network.config.readers)
    how = SamplingConfig(sampler="flow-euler", steps=2, guidance=2.0)
    return System(SystemConfig(model=network.config, diffusion=FlowConfig(), sampling=how, text=text), network)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_follows_its_language_model(images: Path, language: Path, tmp_path: Path) -> None:
    run = run_of(images, language, tmp_path / "run")
    assert run.text is not None
    assert run.model.condition_shape == (2, 6, 32)
    assert (run.text.layers, run.text.sha256) == ((1, 4), complete(TextConfig(source=str(language))).sha256)
    assert run.training.label_dropout == 0.1
    assert run_of(images, language, tmp_path, "text.layers=[4,4]").text.layers == (4, 4)  # type: ignore[union-attr]
    keys = [
        "model=U-DiT-tiny" if key == "model.name=U-DiT-text-tiny" else key
        for key in overrides(images, language, tmp_path)
    ]
    shell = load_run("digits", [key for key in keys if not key.startswith("model.")])
    assert shell.model.condition_shape == (6, 32)
    assert shell.text is not None
    assert shell.text.layers == (4,)


def test_another_language_model_than_a_recipe_s_brings_its_own_sizes(language: Path) -> None:
    shipped = load_run("two-digits", [])
    assert shipped.text is not None
    assert (shipped.text.width, shipped.model.condition_shape) == (576, (8, 12, 576))
    run = load_run("two-digits", [f"text.source={language}"])
    assert run.text is not None
    assert (run.text.width, run.text.depth, run.model.condition_shape) == (32, 4, (8, 12, 32))


def test_recipes_of_texts_are_read_without_their_images() -> None:
    assert load_run("openmoji", [], absent=True).data.captioned


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_training_and_resuming_see_the_same_captions(
    form: str, images: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "save_curve", lambda *_: None)
    more = []
    if form == "shards":
        with tarfile.open(tmp_path / "shard.tar", "w") as shard:
            for path in sorted(images.iterdir()):
                shard.add(path, path.name)
        plain = f"root: {tmp_path / 'shard.tar'}, size: 8, channels: 1, flip: false, test_share: 0.25, judge_share: 0"
        more = [f"data={{kind: webdataset, caption: txt, {plain}}}"]
    whole = run_of(images, language, tmp_path / "whole", *more)
    Trainer(whole).train(progress=False)
    for record in Trainer(run_of(images, language, tmp_path / "cut", *more)).steps():
        if record.step == 2:
            break
    Trainer(run_of(images, language, tmp_path / "cut", *more)).train(progress=False)
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    [grid] = (tmp_path / "whole" / "samples").iterdir()
    settings = read_settings(grid)
    assert settings is not None
    assert set(settings["prompts"]) <= {"a cat", "one cat", "a dog above a cat"}
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val_loss"] > 0


def test_encoding_keeps_hidden_states_and_training_takes_them(
    images: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "save_curve", lambda *_: None)
    cache = udit.encode(run_of(images, language, tmp_path / "run"), tmp_path / "encoded", progress=False)
    assert cache.texts == 4  # three captions and the empty one
    Trainer(run_of(images, language, tmp_path / "run")).train(progress=False)
    monkeypatch.setattr(TextConfig, "build", lambda *_: pytest.fail("the language model is loaded"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    Trainer(run_of(images, language, tmp_path / "latents", f"latents={tmp_path / 'encoded'}")).train(progress=False)
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("run", "latents")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dropped_captions_become_the_empty_one(images: Path, language: Path, tmp_path: Path) -> None:
    def losses(share: float, texts: list[str]) -> torch.Tensor:
        run = run_of(images, language, tmp_path / "run", f"training.label_dropout={share}")
        trainer = Trainer(run)
        perturb(trainer.learner.model)
        trainer.learner.share(0)
        x = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        batch = udit.data.batches.Batch(x, torch.zeros(4, dtype=torch.int64), [0] * 4, [0, 1, 2, 3], texts)
        return trainer.learner.losses(batch).loss.detach()

    said, empty = ["a cat"] * 4, [""] * 4
    assert torch.equal(losses(1.0, said), losses(0.0, empty))
    assert not torch.equal(losses(0.0, said), losses(0.0, empty))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.captions=null"], "the model takes texts and the images have none; set data.captions=files or metadata"),
        (
            ["model.name=DiT-tiny", "model.width=16"],
            "text names a language model and DiT with its settings takes no texts",
        ),
        (["model.context.width=48"], r"is 32 channels wide and model.context.width is 48; leave that out, or give"),
        (["text.tokens=9", "model.context.tokens=6"], "text.tokens is 9 and model.context.tokens 6"),
        (["text.layers=[1,2,3]"], "text.layers has 3 entries and the model reads 2"),
        (["text.width=48"], "is 32 channels wide and the model was trained with one 48 channels wide; give that one"),
        (["text=null"], "the model takes texts and no language model is named for them; set text.source=FOLDER"),
        (["model.num_classes=3"], "num_classes is 3 and the model takes texts; leave it out"),
    ],
)
def test_runs_that_do_not_fit_their_texts_are_refused(
    images: Path, language: Path, tmp_path: Path, more: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        run_of(images, language, tmp_path / "run", *more)
    assert "\n" not in str(error.value)


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(language: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    udit.save(system_of(language, depth=2, width=16, heads=2), path)
    return path


def test_images_follow_their_own_prompts_at_any_batch_size(language: Path) -> None:
    for name in ("U-DiT-text-tiny", "U-DiT-tiny", "U-ViT-tiny"):
        system = system_of(language, name)
        prompts = ["a cat", "a dog above a cat", "a cat"]

        def drawn(texts: list[str], size: int = 3, system: System = system) -> torch.Tensor:
            return torch.cat(list(system.generate([0, 1, 2], prompts=texts, batch_size=size))).int()

        together = drawn(prompts)
        assert (drawn(prompts, 1) - together).abs().max() <= 1
        other = drawn(["a cat", "a cat", "a cat"])
        assert torch.equal(other[[0, 2]], together[[0, 2]])
        assert not torch.equal(other[1], together[1])


def test_a_negative_prompt_takes_the_place_of_the_empty_one(language: Path) -> None:
    system = system_of(language)
    one, same, other = (
        next(system.generate([0], prompts="a cat", negative=negative)) for negative in ("", "", "a dog")
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    unguided = system.config.sampling.replace(guidance=1.0)
    empty = next(system.generate([0], prompts="", sampling=unguided))
    assert torch.equal(next(system.generate([0], prompts="")), empty)  # nothing to guide away from


def test_prompts_of_the_command_line_are_in_pngs_and_titles(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "one"
    words = ["sample", str(folder), "--prompt", "a cat", "--negative", "a dog", "--n", "2", "--out", str(out)]
    assert "wrote 2 images and grid.png" in succeeds(capsys, *words, "--no-progress")
    settings = read_settings(out / "000001.png")
    assert settings is not None
    assert (settings["prompt"], settings["negative"], settings["seed"]) == ("a cat", "a dog", 1)
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog  above a cat\n", encoding="utf-8")
    many = tmp_path / "many"
    succeeds(capsys, "sample", str(folder), "--prompts", str(file), "--out", str(many), "--no-progress")
    assert [read_settings(many / f"00000{i}.png")["prompt"] for i in range(2)] == [  # type: ignore[index]
        "a cat",
        "a dog above a cat",
    ]
    assert not (many / "000002.png").exists()
    images = udit.generate(folder, range(3), prompts=["a cat", "one dog"])
    assert images.titles(3) == (["a cat", "one dog", "a cat"], [])


def test_what_does_not_fit_a_prompt_is_refused_in_one_line(
    folder: Path, tmp_path: Path, wide: Path, error_of: ErrorOf
) -> None:
    classes, plain = tmp_path / "classes", tmp_path / "plain"
    udit.save(system_of(None, "U-DiT-tiny"), classes)
    udit.save(system_of(None, "U-DiT-tiny", num_classes=0), plain)

    def refused(place: Path, *words: str) -> str:
        return error_of("sample", str(place), *words, "--out", str(tmp_path / "out"), "--no-progress")

    assert refused(classes, "--prompt", "a cat").startswith("a prompt was given and the model has 10 classes; leave it")
    assert refused(plain, "--prompt", "a cat").startswith("a prompt was given and the model has no condition; leave it")
    assert refused(folder, "--labels", "3") == "labels were given to a model that takes texts; give prompts (--prompt)"
    assert refused(folder).startswith("the model takes texts and was given none; give prompts, or --prompt TEXT")
    assert refused(folder, "--negative", "a cat").startswith("a negative prompt is given and no prompt")
    assert refused(folder, "--prompt", "a cat", "--negative", "b", "--guidance", "1").startswith("a negative prompt is")
    assert refused(folder, "--prompts", str(tmp_path / "none.txt")).endswith("check the path")
    (tmp_path / "empty.txt").write_text("\n")
    assert refused(folder, "--prompts", str(tmp_path / "empty.txt")).endswith("holds no prompt; write one a line")
    assert refused(folder, "--prompt", "a", "--prompts", "b.txt").startswith("--prompt and --prompts both")
    assert "is 48 channels wide and the model was trained with one 32 channels wide" in refused(
        folder, "--prompt", "a cat", "--text-model", str(wide)
    )
    assert "--text-model" in refused(folder, "--prompt", "a", "--text-model", str(tmp_path / "absent.gguf"))
    assert not (tmp_path / "out").exists()


def test_runs_of_texts_are_scored_by_the_captions_of_held_out_images(
    images: Path, language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error_of: ErrorOf
) -> None:
    run = run_of(images, language, tmp_path / "run", "evaluation.batch_size=4")
    monkeypatch.setattr(preview, "save_curve", lambda *_: None)
    Trainer(run).train(progress=False)
    source = run.data.build()
    captions, held_out = captions_of(source), parts_of(source, run.data).test
    assert captions is not None
    prompts = held_out_captions(run, 20)
    assert all(text in captions[int(held_out[i % len(held_out)])] for i, text in enumerate(prompts))
    assert len({prompts[i] for i in range(0, 20, len(held_out))}) == len(captions[int(held_out[0])])
    drawn: list[str] = []
    monkeypatch.setattr(panel, "load_extractor", lambda *_: None)
    monkeypatch.setattr(panel, "_reference", lambda *_: None)
    real = System.generate

    def generate(system: System, seeds: Any, *labels: Any, prompts: Any, **options: Any) -> Any:
        drawn.extend(prompts)
        return real(system, seeds, *labels, prompts=prompts, **options)

    monkeypatch.setattr(System, "generate", generate)
    asked: dict[str, Any] = {}

    def note(images: ImageSet, *_: object, **facts: Any) -> None:
        asked.update(facts, count=len(images))
        raise UserError("noted")

    monkeypatch.setattr(panel, "score_panel", note)
    with pytest.raises(UserError, match="noted"):
        panel.score_run(run.out, num_samples=20, progress=False)
    assert drawn == prompts
    assert (asked["count"], asked["protocol"]["prompts"]) == (20, "captions of held-out images")
    assert len(asked["protocol"]["prompts_sha256"]) == 64
    assert error_of("eval", str(run.out)).endswith("--features inception, by the captions of its held-out images")
    assert "this model takes texts; choose its setting by eye" in error_of("tune", str(run.out))
    assert error_of("export", "diffusers", str(run.out)).startswith("the model takes texts for a condition")
    assert error_of("export", "onnx", str(run.out)).startswith("U-DiT-text")


def test_initial_weights_bring_their_language_model_and_refuse_another(
    folder: Path, images: Path, language: Path, tmp_path: Path
) -> None:
    def started(*words: str) -> Run:
        given = [
            word for word in overrides(images, language, tmp_path / "run") if not word.startswith(("text.", "model"))
        ]
        return load_run(str(bare), [*given, f"init_from={folder}", *words])

    bare = tmp_path / "bare.yaml"
    bare.write_text("{}\n")
    text = started().text
    assert text is not None
    assert (text.source, text.layers) == (str(language), (1, 4))
    other = language_model(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"\(sha256\) and the weights of init_from=.* were trained with .*; give that one"
    ):
        started(f"text.source={other}")
    with pytest.raises(UserError, match=r"text\.layers is \[4, 4\] and the weights of init_from=.* read \[1, 4\]"):
        started("text.layers=[4,4]")
    moved = tmp_path / "moved"
    shutil.copytree(language, moved)
    assert started(f"text.source={moved}").text == text.replace(source=str(moved))


def test_cards_say_that_a_model_takes_texts(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-to-image" in card
    assert "# U-DiT-text on 1x8x8, texts" in card
    assert 'generate(seeds=range(8), prompts="a text")' in card


def test_a_grid_of_a_model_of_texts_without_any_is_of_the_empty_one(language: Path, tmp_path: Path) -> None:
    images = preview.save_grid(system_of(language), tmp_path / "grid.png", 0)
    assert len(images) == preview.GRID_ROWS
    settings = read_settings(tmp_path / "grid.png")
    assert settings is not None
    assert settings["prompts"] == [""] * preview.GRID_ROWS


def test_a_language_model_that_was_moved_is_named(folder: Path, language: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in language.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    here = udit.generate(folder, [0], prompts="a cat").images()
    assert torch.equal(udit.generate(folder, [0], prompts="a cat", text_model=moved).images(), here)


@pytest.mark.slow
def test_models_of_texts_are_timed_with_random_states() -> None:
    how = SamplingConfig(steps=1)
    rows = list(udit.bench(["U-DiT-text-tiny"], work=("forward", "train", "image"), sampling=how, rounds=1))
    assert len(rows) == 3
    assert all(min(row.seconds) > 0 for row in rows)
