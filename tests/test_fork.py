"""A fork goes on from a checkpoint in a folder of its own: with the run's bits, or with what was changed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from unittest import mock

import pytest

import udit
from conftest import ErrorOf, same_bits, succeeds
from runs import finished_at, image_folder, metrics, state_hash, train
from udit import dist
from udit.checkpoint import CheckpointStore
from udit.errors import UserError
from udit.run.recipes import load_run
from udit.training import preview
from udit.training.trainer import Trainer

STEPS = "training.steps=9"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that train on a small folder of images."""
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> Path:
    """A finished run of nine steps with checkpoints of 3, 6 and 9, and an average to rebuild others from."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out, STEPS, "training.keep=4", "training.posthoc_ema.every=3", *data)
    return out


def finish(out: Path) -> dict[str, object]:
    """Trains a fork to its end, as `udit train OUT/run.yaml` does."""
    run = load_run(str(out / "run.yaml"))
    with mock.patch.object(preview, "save_curve"):
        outcome = Trainer(run, dist.World()).train(progress=False)
    assert outcome == finished_at(out, run.training.steps)
    return run.plain()


def everything(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_unchanged_fork_of_an_older_checkpoint_ends_with_the_bits_of_the_run(run: Path, tmp_path: Path) -> None:
    before = everything(run)
    made = udit.fork(run, tmp_path / "fork", checkpoint=3)
    assert (made.step, made.changed) == (3, ())
    assert CheckpointStore(made.out / "checkpoints").steps() == [3]
    assert metrics(made.out) == metrics(run)[:3]
    finish(made.out)
    assert state_hash(made.out) == state_hash(run)
    assert metrics(made.out) == metrics(run)
    assert {p.name: p.read_bytes() for p in (made.out / "posthoc").iterdir()} == {
        p.name: p.read_bytes() for p in (run / "posthoc").iterdir()
    }
    assert everything(run) == before


def test_changed_keys_hold_from_the_checkpoint_on(run: Path, tmp_path: Path) -> None:
    changes = ["training.lr=1e-4", "training.steps=8", "name=slower"]
    made = udit.fork(run, tmp_path / "fork", changes, checkpoint=6)
    assert sorted(made.changed) == ["name", "training.lr", "training.steps"]
    values = finish(made.out)
    assert values["training"]["lr"] == 1e-4
    rates = [line["lr"] for line in metrics(made.out)]
    assert rates[:6] == [line["lr"] for line in metrics(run)[:6]]
    assert rates[6:] == [1e-4, 1e-4]
    assert CheckpointStore(made.out / "checkpoints").at(6).manifest["forked_from"] == {"run": str(run), "step": 6}


def test_fork_of_a_finished_run_takes_more_steps(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.steps is 9 and the checkpoint is of step 9; give more steps, e.g."):
        udit.fork(run, tmp_path / "fork")
    made = udit.fork(run, tmp_path / "fork", ["training.steps=10"])
    finish(made.out)
    assert len(metrics(made.out)) == 10


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["model.width=32"], "model.width is 8 in {run} and would be 32; a fork goes on with the same model"),
        (["training.optimizer=muon"], "training.optimizer.kind is 'adamw' in {run} and would be 'muon'"),
        (["data.flip=false"], "data.flip is true in {run} and would be false"),
        (["training.lr=fast"], "training.lr"),
        (["trainig.lr=1e-3"], "unknown key 'trainig'; did you mean 'training'?"),
        (["--checkpoint", "4"], "{run} has no checkpoint of step 4; it has 3, 6, 9 (training.keep keeps more)"),
    ],
)
def test_what_cannot_go_on_is_one_line(
    words: list[str], wanted: str, run: Path, tmp_path: Path, error_of: ErrorOf
) -> None:
    told = error_of("fork", str(run), str(tmp_path / "fork"), *words)
    assert wanted.format(run=run) in told
    assert not (tmp_path / "fork").exists()


def test_folders_that_do_not_fit_are_one_line(run: Path, tmp_path: Path, error_of: ErrorOf) -> None:
    assert f"{run} exists; a fork takes a folder of its own" in error_of("fork", str(run), str(run), STEPS)
    assert "is no run folder" in error_of("fork", str(tmp_path), str(tmp_path / "fork"))
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "checkpoints" / "step-00000006" / "ema.safetensors").write_bytes(b"torn")
    told = error_of("fork", str(damaged), str(tmp_path / "fork"), "--checkpoint", "6")
    assert "is damaged (ema.safetensors has 4 of" in told
    assert "fork another one" in told


def test_command_says_how_to_go_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = succeeds(capsys, "fork", str(run), str(tmp_path / "f"), "training.lr=1e-4", "--checkpoint", "3")
    wanted = f"forked {run} at step 3, with another training.lr; next: udit train {tmp_path / 'f' / 'run.yaml'}\n"
    assert told == wanted


def test_checkpoint_of_a_step_is_sampled(
    run: Path, tmp_path: Path, error_of: ErrorOf, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "images"
    succeeds(
        capsys, "sample", str(run), "--checkpoint", "3", "--n", "2", "--steps", "1", "--out", str(out), "--no-progress"
    )
    chosen = udit.load(run / "checkpoints" / "step-00000003")
    assert chosen.config.steps == 3
    assert not same_bits(chosen.backbone.state_dict(), udit.load(run).backbone.state_dict())
    told = error_of("sample", str(run), "--checkpoint", "5")
    assert "has no checkpoint of step 5; it has 3, 6, 9" in told
    assert "is no run folder" in error_of("sample", str(run / "model"), "--checkpoint", "3")
