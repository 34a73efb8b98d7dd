"""Whether a run is new or goes on is told at once, and a folder without weights holds no settings back."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from runs import finished_at, image_folder, metrics, small_run, state_hash, train
from udit.checkpoint import CheckpointStore
from udit.data.batches import Batch
from udit.diffusion.objective import Losses
from udit.errors import RunError, UserError
from udit.run.recipes import read_yaml
from udit.training.learner import Learner
from udit.training.opening import run_beside
from udit.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return image_folder(tmp_path_factory.mktemp("data") / "images")


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Plants an error into the losses of a step."""
    honest = Learner.losses

    def losses(self: Learner, batch: Batch) -> Losses:
        if self.steps_done == step - 1:
            raise error
        return honest(self, batch)

    monkeypatch.setattr(Learner, "losses", losses)


# -- new runs ------------------------------------------------------------------------------------------------------


def test_slip_in_the_folder_is_told_with_the_run_that_was_meant(
    data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(tmp_path / "pets", "training.steps=2", *data)
        train(tmp_path / "pest", "training.steps=2", *data)
        train(tmp_path / "pets", "training.steps=3", *data)
    told = [text for text in caplog.messages if not text.startswith("training ")]
    assert told == [
        f"new run in {tmp_path / 'pets'}",
        f"new run in {tmp_path / 'pest'}; {tmp_path / 'pets'} holds a run of the same data and model at step 2; if "
        f"that was meant, out={tmp_path / 'pets'}",
        "resuming from step 2",
    ]


def test_nearest_name_is_told_and_others_are_counted(data: list[str], tmp_path: Path) -> None:
    train(tmp_path / "cats-1", "training.steps=1", *data)
    for name in ("cats-2", "other", "nothing-trained"):
        shutil.copytree(tmp_path / "cats-1", tmp_path / name)
    shutil.rmtree(tmp_path / "nothing-trained" / "checkpoints")
    (tmp_path / "a-file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.yaml").write_bytes(b"\xff: [")
    told = run_beside(small_run(tmp_path / "cats-22", *data))
    assert told.startswith(f"; {tmp_path / 'cats-2'} holds a run of the same data and model at step 1 (2 more do); if")
    for change in ("model.width=16", "data.test_share=0.3"):
        assert run_beside(small_run(tmp_path / "cats-22", *data, change)) == ""
    assert run_beside(small_run(tmp_path / "deep" / "er" / "cats", *data)) == ""


def test_consistency_of_untrained_weights_is_told(
    data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "new", "training.steps=1", "diffusion={kind: consistency}", "sampling={}", *data)
    said = "diffusion.kind=consistency goes on from a trained flow and begins with untrained weights; set init_from"
    assert said in caplog.messages


def test_batch_above_the_number_of_training_images_is_told(
    data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "run", "training.steps=1", "training.batch_size=25", "data.judge_share=0", *data)
    assert any(text.startswith("training.batch_size is 25 and there are ") for text in caplog.messages)
    caplog.clear()
    train(tmp_path / "small", "training.steps=1", "data.judge_share=0", *data)
    assert not any(text.startswith("training.batch_size is ") for text in caplog.messages)


# -- folders without weights ---------------------------------------------------------------------------------------


def test_run_that_made_no_checkpoint_takes_new_settings_and_says_so(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3, KeyError("killed"))
        with pytest.raises(KeyError):
            train(tmp_path / "run", "training.batch_size=9", "training.sample_every=2", *data)
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == []
    assert len(metrics(tmp_path / "run")) == 2
    with caplog.at_level(logging.INFO):
        assert train(tmp_path / "run", "training.steps=3", *data) == finished_at(tmp_path / "run", 3)
    assert caplog.messages[0] == f"{tmp_path / 'run'} holds no weights yet and takes the new training.batch_size"
    assert caplog.messages[1] == f"new run in {tmp_path / 'run'}"
    assert read_yaml(tmp_path / "run" / "run.yaml")["training"]["batch_size"] == 6
    train(tmp_path / "clean", "training.steps=3", *data)
    assert state_hash(tmp_path / "run") == state_hash(tmp_path / "clean")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "clean")
    grids = [sorted(path.name for path in (tmp_path / name / "samples").iterdir()) for name in ("run", "clean")]
    assert grids[0] == grids[1]


@pytest.mark.parametrize("kept", ["checkpoints/step-00000001.damaged", "posthoc/step-00000001.safetensors", "model"])
def test_folder_with_any_weights_keeps_its_settings(data: list[str], tmp_path: Path, kept: str) -> None:
    train(tmp_path, "training.steps=1", *data)
    for name in ("model", "checkpoints"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / kept).mkdir(parents=True)
    with pytest.raises(UserError, match=r"^training\.batch_size was 6 in .* and is 9 now"):
        train(tmp_path, "training.steps=1", "training.batch_size=9", *data)


# -- memory that runs out ------------------------------------------------------------------------------------------

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError(f"{ALLOCATOR}allocate 8 bytes.\nError code 12"), MemoryError()])
def test_running_out_of_memory_is_one_line_and_the_run_goes_on_in_less(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5, error)
        with pytest.raises(RunError, match=r"^out of memory.*; what is saved is intact; lower") as caught:
            train(tmp_path / "run", "training.steps=6", *data)
    assert "\n" not in str(caught.value)
    assert "alloc_cpu" not in str(caught.value)
    less = ["training.accumulation=2", "training.checkpoint_activations=true"]
    with caplog.at_level(logging.INFO):
        assert train(tmp_path / "run", "training.steps=6", *data, *less) == finished_at(tmp_path / "run", 6)
    assert "resuming from step 3" in caplog.messages
    for key, before, now in (("accumulation", 1, 2), ("checkpoint_activations", False, True)):
        line = f"training.{key} was {before} and is {now} now: samples and noise stay the same, weights are equal up to"
        assert any(text.startswith(line) for text in caplog.messages)


def test_other_errors_of_torch_are_not_taken_for_memory(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, 1, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(Trainer(small_run(tmp_path, *data)).steps())
