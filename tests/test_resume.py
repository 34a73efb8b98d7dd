"""A run interrupted anywhere and started again ends with the bits of the unbroken one."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import udit
from conftest import quick
from runs import (
    finished_at,
    image_folder,
    metrics,
    newest,
    state_hash,
    train,
)
from udit.checkpoint import MANIFEST, CheckpointStore
from udit.data.batches import Batch
from udit.diffusion.objective import Losses
from udit.errors import UserError
from udit.files import seal, unseal
from udit.run.recipes import read_yaml, to_yaml
from udit.training.learner import Learner

OneLine = Callable[[BaseException], str]
STEPS = "training.steps=10"
GRID = Path("samples", "step-00000010.png")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps without a break, checkpoints at 9 and 10."""
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    train(out, STEPS)
    return out


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it was when step 9 had been saved, with the checkpoints of steps 6 and 9."""
    out = tmp_path_factory.mktemp("runs") / "crashed"
    crash(out, before=10)
    return out


@pytest.fixture
def half(crashed: Path, tmp_path: Path) -> Path:
    """A copy of ``crashed`` to work on."""
    return Path(shutil.copytree(crashed, tmp_path / "half"))


def crash(out: Path, before: int) -> None:
    """Trains until the losses of a step would be computed, and stops there."""
    honest = Learner.losses

    def losses(self: Learner, batch: Batch) -> Losses:
        if batch.positions[0] // 6 == before - 1:
            raise KeyError("pulled the plug")
        return honest(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "losses", losses)
        with pytest.raises(KeyError):
            train(out, STEPS)


def assert_same_run(out: Path, unbroken: Path) -> None:
    """State, log and images are those of the unbroken run."""
    assert newest(out).name == newest(unbroken).name
    assert state_hash(out) == state_hash(unbroken)
    assert metrics(out) == metrics(unbroken)
    assert (out / GRID).read_bytes() == (unbroken / GRID).read_bytes()
    for name in ("model.safetensors", "model.raw.safetensors", "config.json"):
        assert (out / "model" / name).read_bytes() == (unbroken / "model" / name).read_bytes()


@pytest.mark.parametrize("cut", quick((1, 3, 4, 5, 10), (3, 4)))
def test_run_that_died_within_a_step_ends_at_the_same_bits(unbroken: Path, tmp_path: Path, cut: int) -> None:
    crash(tmp_path, before=cut)
    assert train(tmp_path, STEPS) == finished_at(tmp_path, 10)
    assert_same_run(tmp_path, unbroken)


def test_run_that_died_again_and_again_ends_at_the_same_bits(unbroken: Path, tmp_path: Path) -> None:
    for cut in (2, 6, 8, 8):
        crash(tmp_path, before=cut)
    assert train(tmp_path, STEPS) == finished_at(tmp_path, 10)
    assert_same_run(tmp_path, unbroken)


def test_finished_run_goes_on_where_more_steps_are_asked_for(unbroken: Path, tmp_path: Path) -> None:
    for steps in (2, 5, 10):
        train(tmp_path, f"training.steps={steps}")
    assert state_hash(tmp_path) == state_hash(unbroken)
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 11))
    assert udit.load(tmp_path / "model").config.steps == 10


def test_no_sample_is_lost_or_repeated_over_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_folder(tmp_path / "data")  # 18 to train on: an epoch is 3 steps
    seen: dict[int, list[int]] = {}
    honest = Learner.losses

    def losses(self: Learner, batch: Batch) -> Losses:
        for position, i in zip(batch.positions, batch.ids, strict=True):
            seen.setdefault(position, []).append(i)
        return honest(self, batch)

    monkeypatch.setattr(Learner, "losses", losses)
    for steps in (1, 4, 5, 9):
        train(tmp_path / "out", f"training.steps={steps}", *data)
    assert sorted(seen) == list(range(54))
    assert all(len(ids) == 1 for ids in seen.values())
    order = [seen[position][0] for position in range(54)]
    epochs = [order[start : start + 18] for start in (0, 18, 36)]
    assert len(set(epochs[0])) == 18
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    "change",
    quick(
        (
            "training.save_every=2",
            "training.keep=4",
            "training.log_every=4",
            "training.sample_every=2",
            "sampling.steps=2",
        ),
        ("training.save_every=2", "training.sample_every=2"),
    ),
)
def test_key_that_may_change_changes_no_weight(half: Path, unbroken: Path, change: str) -> None:
    assert train(half, STEPS, change) == finished_at(half, 10)
    assert state_hash(half) == state_hash(unbroken)


@pytest.mark.parametrize("change", ["training.lr=1e-3", "seed=1", "training.batch_size=4", "model.width=16"])
def test_key_that_may_not_change_is_named_and_nothing_is_touched(half: Path, change: str, one_line: OneLine) -> None:
    before = {p: p.read_bytes() for p in half.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=f"^{change.split('=')[0]} was ") as error:
        train(half, STEPS, change)
    one_line(error.value)
    assert {p: p.read_bytes() for p in half.rglob("*") if p.is_file()} == before


def test_keys_that_did_not_exist_when_a_run_began_count_as_their_defaults(half: Path, unbroken: Path) -> None:
    def without_the_new_ones(values: dict[str, Any]) -> dict[str, Any]:
        training = {key: value for key, value in values["training"].items() if key != "posthoc_ema"}
        return {key: value for key, value in values.items() if key not in ("codec", "latents")} | {"training": training}

    (half / "run.yaml").write_text(to_yaml(without_the_new_ones(read_yaml(half / "run.yaml"))))
    for path in half.glob(f"checkpoints/*/{MANIFEST}"):
        values = unseal(path.read_text())
        path.write_text(seal(values | {"run": without_the_new_ones(values["run"])}))
    with pytest.raises(UserError, match=r"^codec\.kind was 'identity' in "):
        train(half, STEPS, "codec=space-to-depth")
    train(half, STEPS)
    assert state_hash(half) == state_hash(unbroken)


DAMAGES = [  # test_checkpoint has every damage of every file
    ("model.safetensors", lambda p: os.truncate(p, p.stat().st_size // 2)),
    ("ema.safetensors", lambda p: p.write_bytes((c := p.read_bytes())[:-40] + bytes([c[-40] ^ 4]) + c[-39:])),
    ("optim.safetensors", Path.unlink),
    (MANIFEST, lambda p: os.truncate(p, 1)),
    (MANIFEST, lambda p: p.write_bytes(p.read_bytes().replace(b'"threads": 1', b'"threads": 3'))),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGES)
def test_damaged_newest_checkpoint_is_named_and_the_one_before_goes_on(
    half: Path, unbroken: Path, file: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    damage(newest(half) / file)
    with caplog.at_level(logging.INFO):
        assert train(half, STEPS) == finished_at(half, 10)
    assert "step-00000009 is damaged" in caplog.messages[0]
    assert file in caplog.messages[0]
    assert "resuming from step 6" in caplog.messages
    assert (half / "checkpoints" / "step-00000009.damaged").is_dir()
    assert_same_run(half, unbroken)


def test_all_checkpoints_damaged_starts_from_the_beginning(half: Path, unbroken: Path) -> None:
    for path in (half / "checkpoints").glob("step-????????"):
        os.truncate(path / "model.safetensors", 99)
    assert train(half, STEPS) == finished_at(half, 10)
    assert_same_run(half, unbroken)


def test_lost_log_is_no_reason_to_stop(half: Path, unbroken: Path) -> None:
    (half / "metrics.jsonl").unlink()
    assert train(half, STEPS) == finished_at(half, 10)
    assert state_hash(half) == state_hash(unbroken)
    assert [line["step"] for line in metrics(half)] == [10]


def test_log_ahead_of_the_checkpoint_is_rewound(half: Path, unbroken: Path) -> None:
    shutil.rmtree(half / "checkpoints" / "step-00000009")
    with (half / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 10, "loss": 1.0}\n{"step": 11, "lo')
    assert train(half, STEPS) == finished_at(half, 10)
    assert_same_run(half, unbroken)


def test_temporary_leftovers_are_swept(half: Path, unbroken: Path) -> None:
    for name in ("checkpoints/.tmp-step-00000010-1", "checkpoints/.tmp-old-step-00000003-1", ".tmp-model-1"):
        (half / name).mkdir()
        (half / name / "model.safetensors").write_bytes(b"half")
    (half / ".tmp-run.yaml").write_text("seed: 9")
    assert train(half, STEPS) == finished_at(half, 10)
    assert not [p for p in half.rglob(".tmp-*") if p.is_dir()]
    assert_same_run(half, unbroken)


def test_finished_run_started_again_changes_nothing(unbroken: Path) -> None:
    kept = [p for p in unbroken.rglob("*") if p.is_file() and p.name not in ("run.yaml", "run.lock", "loss.png")]
    before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in kept}
    assert train(unbroken, STEPS) == finished_at(unbroken, 10)
    assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in kept} == before


def test_finished_run_that_lost_its_model_folder_writes_it_again(half: Path, unbroken: Path) -> None:
    train(half, STEPS)
    shutil.rmtree(half / "model")
    assert train(half, STEPS) == finished_at(half, 10)
    assert_same_run(half, unbroken)


def test_fewer_steps_than_done_leaves_the_weights_and_says_how_many(half: Path) -> None:
    assert train(half, "training.steps=4") == finished_at(half, 9)
    assert udit.load(half / "model").config.steps == 9


def test_checkpoint_of_another_run_is_refused_even_without_its_run_yaml(half: Path, one_line: OneLine) -> None:
    (half / "run.yaml").unlink()
    with pytest.raises(
        UserError, match=r"model\.width was 8 in .*step-00000009.*manifest\.json and is 16 now"
    ) as error:
        train(half, STEPS, "model.width=16")
    one_line(error.value)
    assert newest(half).name == "step-00000009"


@pytest.mark.parametrize("part", ["model", "ema"])
def test_checkpoint_with_the_tensors_of_another_model_is_refused(half: Path, part: str, one_line: OneLine) -> None:
    path = newest(half)
    manifest = json.loads((path / MANIFEST).read_text())
    tensors = {name: load_file(path / f"{name}.safetensors") for name in ("model", "ema", "optim")}
    name = next(iter(tensors[part]))
    tensors[part]["strange"] = tensors[part].pop(name)
    shutil.rmtree(path)
    facts = {k: v for k, v in manifest.items() if k not in ("schema", "step", "files", "digest")}
    CheckpointStore(half / "checkpoints").save(9, tensors, facts)
    with pytest.raises(UserError, match=r"step-00000009 holds another model than this run's .*strange") as error:
        train(half, STEPS)
    one_line(error.value)


def test_changed_images_are_refused_and_named(tmp_path: Path, one_line: OneLine) -> None:
    data, cats = image_folder(tmp_path / "data"), tmp_path / "data" / "cat"
    train(tmp_path / "out", "training.steps=2", *data)

    def told() -> str:
        with pytest.raises(UserError, match=r"the data is not what .*step-00000002 was trained on") as error:
            train(tmp_path / "out", "training.steps=4", *data)
        return one_line(error.value)

    shutil.copy(cats / "0.png", cats / "more.png")
    assert "(1 added, e.g. 'cat/more.png'); put it back" in told()
    (cats / "0.png").unlink()
    assert "(1 added, e.g. 'cat/more.png', 1 removed, e.g. 'cat/0.png')" in told()
    (cats / "more.png").rename(cats / "0.png")
    train(tmp_path / "out", "training.steps=3", *data)
    with (cats / "0.png").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(UserError, match=r"\(the same names, but images or labels were altered\)"):
        train(tmp_path / "out", "training.steps=4", *data)
    (tmp_path / "out" / "pictures.txt").unlink()
    with pytest.raises(UserError, match=r"\(images were added, removed or altered\)"):
        train(tmp_path / "out", "training.steps=4", *data)


def test_images_may_move(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    train(tmp_path / "out", "training.steps=2", *data)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = [f"data.root={tmp_path / 'elsewhere'}" if word.startswith("data.root") else word for word in data]
    assert train(tmp_path / "out", "training.steps=3", *moved) == finished_at(tmp_path / "out", 3)


def test_resuming_on_another_machine_warns(half: Path, unbroken: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = newest(half)
    manifest = json.loads((path / MANIFEST).read_text())
    tensors = {name: load_file(path / f"{name}.safetensors") for name in ("model", "ema", "optim")}
    shutil.rmtree(path)
    facts = {k: v for k, v in manifest.items() if k not in ("schema", "step", "files", "digest")}
    facts["machine"] = facts["machine"] | {"threads": 64}
    CheckpointStore(half / "checkpoints").save(9, tensors, facts)
    train(half, STEPS)
    assert (
        "threads was 64 and is 1 now: samples and noise stay the same, weights are equal up to rounding" in caplog.text
    )
    assert_same_run(half, unbroken)
