"""A training is shown where it is asked to be, and a tracker that fails costs nothing else."""

from __future__ import annotations

import importlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from conftest import ErrorOf
from runs import RECIPE, SMALL, image_folder, metrics, small_run, train
from udit import dist
from udit.training import tracking
from udit.training.tracking import identity
from udit.training.trainer import Trainer

WORDS = ["training.steps=4", "training.sample_every=2", "sampling.steps=1", "training.save_every=2"]


class Remembers:
    """A tracker that keeps what it is told."""

    def __init__(self, fails_at: int = 0) -> None:
        self.steps: list[int] = []
        self.images: list[int] = []
        self.closed = 0
        self.fails_at = fails_at

    def write(self, step: int, scalars: dict[str, float], texts: Mapping[str, str]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the network\nis gone")
        self.steps.append(step)
        assert scalars["loss"] > 0

    def image(self, step: int, path: Path) -> None:
        self.images.append(step)
        assert path.read_bytes().startswith(b"\x89PNG")

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Remembers]:
    """In place of Weights & Biases; one for each time that it is opened, the first failing at step 1."""
    opened: list[Remembers] = []

    def open_one(*_: object) -> Remembers:
        opened.append(Remembers(fails_at=0 if opened else 1))
        return opened[-1]

    monkeypatch.setitem(tracking._OPEN, "wandb", open_one)
    monkeypatch.setattr(tracking, "installed", lambda name: True)
    return opened


def test_tracker_that_fails_is_one_line_and_is_opened_again_at_the_next_preview(
    data: list[str], tmp_path: Path, wandb: list[Remembers], caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path / "run", *data, *WORDS, "training.trackers=[wandb]")
    assert [line for line in caplog.messages if "Weights" in line] == [
        "Weights & Biases's line of step 1 failed (ConnectionError: the network is gone); all else goes on"
    ]
    assert [(one.steps, one.images, one.closed) for one in wandb] == [([], [], 1), ([2, 3, 4], [2, 4], 1)]
    assert len(metrics(tmp_path / "run")) == 4
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_steps_that_are_done_again_are_sent_once(data: list[str], tmp_path: Path, wandb: list[Remembers]) -> None:
    wandb.append(Remembers())  # none fails
    overrides = [*data, *WORDS, "training.trackers=[wandb]"]
    out = tmp_path / "run"
    train(out, *overrides)
    for name in ("checkpoints/step-00000004", "model"):
        (out / name).rename(tmp_path / name.replace("/", "-"))
    train(out, *overrides)
    assert [one.steps for one in wandb[1:]] == [[1, 2, 3, 4], []]
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]


def test_grid_of_samples_is_in_tensorboard(data: list[str], tmp_path: Path) -> None:
    train(tmp_path / "run", *data, "training.steps=1", "sampling.steps=1")
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    [image] = [
        value.tensor.string_val
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == "samples"
    ]
    assert image[2] == (tmp_path / "run" / "samples" / "step-00000001.png").read_bytes()


def test_folder_of_a_tracker_s_name_is_not_taken_for_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tracker_of_no_one").mkdir()  # W&B leaves its runs in ./wandb
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not tracking.installed("tracker_of_no_one")
    (tmp_path / "tracker_of_no_one" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert tracking.installed("tracker_of_no_one")


def test_identity_of_a_run_is_kept(tmp_path: Path) -> None:
    assert identity(tmp_path) == identity(tmp_path)
    (tmp_path / "other").mkdir()
    assert identity(tmp_path / "other") != identity(tmp_path)


def test_what_cannot_be_tracked_is_one_line(
    data: list[str], tmp_path: Path, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", RECIPE, *SMALL, *data, f"out={tmp_path / 'run'}"]
    assert "training.trackers.0 is 'wandbb'; it takes 'tensorboard', 'wandb' or 'trackio'" in error_of(
        *words, "training.trackers=[wandbb]"
    )
    monkeypatch.setattr(tracking, "installed", lambda name: False)
    assert error_of(*words, "training.trackers=[trackio]").endswith(
        "training.trackers=[trackio] needs trackio, which is not installed; run: pip install 'udit[tracking]'"
    )


def logged(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, LevelDB's log format after a header of seven bytes."""
    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        if (left := -place % 32768) < 7:  # the rest of a block has no room for a header
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield whole
            whole = b""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_real_libraries_keep_a_run_on_this_machine(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of Weights & Biases' offline mode, and Trackio's database, over an interruption."""
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    out, overrides = tmp_path / "run", [*data, *WORDS, "training.trackers=[wandb, trackio]"]
    trainer = Trainer(small_run(out, *overrides), dist.World())
    for step in trainer.steps():
        if step.step == 3:
            break
    train(out, *overrides)
    found: dict[int, dict[str, object]] = {}
    for path in sorted((out / "wandb").glob("offline-run-*/*.wandb")):
        for part in logged(path):
            record = Record()
            record.ParseFromString(part)
            if record.HasField("history"):
                items = record.history.item
                values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
                found.setdefault(int(values["_step"]), {}).update(values)
    lines = {line["step"]: line for line in metrics(out)}
    assert sorted(found) == sorted(lines) == [1, 2, 3, 4]
    assert all(found[step]["loss"] == line["loss"] for step, line in lines.items())
    assert any("samples" in key for key in found[2])
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics where run_name like ?", (f"%{identity(out)}",))
        assert sorted(int(step) for step, values in rows if b'"loss"' in values) == [1, 2, 3, 4]
