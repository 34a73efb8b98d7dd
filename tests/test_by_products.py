"""What a training makes beside its result may fail for any reason: one warning, and no step is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runs import finished_at, metrics, state_hash, train
from udit.checkpoint import CheckpointStore
from udit.errors import one_line
from udit.training import events, preview

WORDS = ("training.steps=4", "training.sample_every=2", "training.save_every=2")
GRIDS = [f"samples/step-0000000{step}.png" for step in (2, 4)]


class Fault(NamedTuple):
    """Where a failure is planted, the start of each warning, and files that the failure costs."""

    target: object
    name: str
    warnings: tuple[str, ...]
    lost: tuple[str, ...]


FAULTS = {
    "sample grid": Fault(
        preview, "save_grid", ("the sample grid of step 2", "the sample grid of step 4"), tuple(GRIDS)
    ),
    "validation": Fault(
        preview, "validation_loss", ("the validation loss of step 2", "the validation loss of step 4"), ()
    ),
    "loss curve": Fault(preview, "save_curve", ("the loss curve",), ("loss.png",)),
    "TensorBoard's lines": Fault(
        events.EventLog, "write", ("TensorBoard's line of step 1", "TensorBoard's line of step 2", "TensorBoard's"), ()
    ),
    "TensorBoard's file": Fault(events.EventLog, "__init__", ("TensorBoard's log of the steps after 0",), ()),
    "closing TensorBoard's file": Fault(events.EventLog, "close", ("closing TensorBoard's log",), ()),
    "model card": Fault(None, "udit.store.model_card", ("the model card of ",), ("model/README.md",)),
}
ERRORS = [IndexError("tuple index\nout of range"), OSError(28, "No space left on device"), MemoryError()]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sound"
    train(out, *WORDS, curve=True)
    return out


def files(out: Path) -> set[str]:
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("tensorboard/")}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_failing_by_product_is_a_warning_and_costs_nothing_else(
    sound: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fault, out = FAULTS[name], tmp_path / "run"
    error = ERRORS[list(FAULTS).index(name) % len(ERRORS)]

    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    if fault.target is None:
        monkeypatch.setattr(fault.name, fail)
    else:
        monkeypatch.setattr(fault.target, fault.name, fail)
    with caplog.at_level(logging.WARNING):
        assert train(out, *WORDS, curve=name == "loss curve") == finished_at(out, 4)
    told = [record.getMessage() for record in caplog.records]
    assert all("\n" not in line and f"failed ({type(error).__name__}: " in line for line in told)
    for start in fault.warnings:
        assert any(line.startswith(start) for line in told), told
    assert state_hash(out) == state_hash(sound)
    assert sorted(CheckpointStore(out / "checkpoints").steps()) == [2, 4]
    curve = set() if name == "loss curve" else {"loss.png"}
    assert files(sound) - files(out) == {*fault.lost} | curve
    wanted = [{k: v for k, v in line.items() if name != "validation" or k != "val_loss"} for line in metrics(sound)]
    assert metrics(out) == wanted


def test_sample_grid_is_drawn_again_at_the_next_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Callable[..., Any] = preview.save_grid

    def fail_once(system: Any, path: Path, *rest: Any) -> Any:
        if "00000002" in path.name:
            raise IndexError
        return honest(system, path, *rest)

    monkeypatch.setattr(preview, "save_grid", fail_once)
    train(tmp_path, *WORDS)
    assert [(tmp_path / grid).is_file() for grid in GRIDS] == [False, True]


def test_events_go_on_in_a_new_file_at_the_next_interval(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    honest = events.EventLog.write

    def torn(self: events.EventLog, step: int, scalars: dict[str, float], texts: dict[str, str]) -> None:
        if step == 1:
            self._records._writer.write(b"half a record")
            raise OSError(28, "No space left on device")
        honest(self, step, scalars, texts)

    monkeypatch.setattr(events.EventLog, "write", torn)
    train(tmp_path, *WORDS)
    assert sum("TensorBoard" in text for text in caplog.messages) == 1
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [event.step for event in shown.Scalars("loss")] == [2, 3, 4]


def test_run_that_died_within_a_grid_goes_on_beyond_it(sound: Path, tmp_path: Path) -> None:
    """An interruption is no failure of the grid: the step is done again by the same command, and its grid drawn."""
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(*arguments: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(preview, "save_grid", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", *WORDS)
    assert train(tmp_path / "run", *WORDS) == finished_at(tmp_path / "run", 4)
    assert state_hash(tmp_path / "run") == state_hash(sound)
    assert metrics(tmp_path / "run") == metrics(sound)


def test_error_of_another_library_is_one_line_without_control_codes() -> None:
    error = RuntimeError("first\n\x1b[96mcoloured\x1b[0m\tlast\x07")
    assert one_line(error) == "first coloured last"
