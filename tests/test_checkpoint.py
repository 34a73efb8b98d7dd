"""Checkpoints are complete or absent; a damaged one is named, renamed and skipped."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from udit.checkpoint import MANIFEST, CheckpointStore, DamagedError, seal, verify
from udit.errors import RunError, UserError

State = dict[str, dict[str, Tensor]]
FILES = ["model.safetensors", "ema.safetensors", "optim.safetensors", MANIFEST]


def state(step: int) -> State:
    """Tensors of several types and shapes, different for each step."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "model": {"weight": weight, "scale": weight.bfloat16()},
        "ema": {"weight": weight.T},
        "optim": {"step.weight": torch.tensor(float(step)), "exp_avg.weight": weight.double()},
    }


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Two checkpoints, of steps 3 and 7."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (3, 7):
        store.save(step, state(step), {"note": "ours"})
    return store


def flip_bit(path: Path, place: float) -> None:
    """Flips one bit at a share of the file."""
    content = bytearray(path.read_bytes())
    at = min(int(place * len(content)), len(content) - 1)
    content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    **{f"cut to {share:.0%}": lambda p, s=share: os.truncate(p, int(s * p.stat().st_size)) for share in (0.5, 0.99)},
    **{f"cut to {size}": lambda p, s=size: os.truncate(p, s) for size in (0, 1)},
    "a byte longer": lambda p: p.write_bytes(p.read_bytes() + b"\n"),
    **{f"bit flipped at {place:.0%}": lambda p, s=place: flip_bit(p, s) for place in (0, 0.3, 0.7, 1)},
    "a folder instead": lambda p: (p.unlink(), p.mkdir()),
}


def test_what_is_saved_comes_back_bit_for_bit(store: CheckpointStore) -> None:
    found = store.newest()
    assert found is not None
    assert (found.step, found.manifest["note"], found.path.name) == (7, "ours", "step-00000007")
    for part, tensors in state(7).items():
        loaded = found.tensors(part)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "nowhere")
    assert store.newest() is None
    assert store.steps() == []
    store.sweep()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_named_set_aside_and_skipped(
    store: CheckpointStore, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.folder / "step-00000007"
    DAMAGES[damage](path / file)
    with caplog.at_level(logging.WARNING):
        found = store.newest()
    assert found is not None
    assert found.step == 3
    [line] = caplog.messages
    assert str(path) in line
    assert file in line
    assert "step-00000007.damaged" in line
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000003", "step-00000007.damaged"]


def test_damaged_twice_keeps_both_aside(store: CheckpointStore) -> None:
    for _ in range(2):
        flip_bit(store.folder / "step-00000007" / "ema.safetensors", 0.5)
        assert store.newest().step == 3  # type: ignore[union-attr]
        store.save(7, state(7), {})
    names = {p.name for p in store.folder.iterdir()}
    assert {"step-00000007", "step-00000007.damaged", "step-00000007.damaged-2"} <= names
    assert store.newest().step == 7  # type: ignore[union-attr]


def test_all_damaged_is_none(store: CheckpointStore) -> None:
    for step in store.steps():
        flip_bit(store.folder / f"step-{step:08d}" / "model.safetensors", 0.9)
    assert store.newest() is None
    assert store.steps() == []


def test_empty_folder_with_a_checkpoints_name_is_damaged(store: CheckpointStore) -> None:
    (store.folder / "step-00000009").mkdir()
    assert store.newest().step == 7  # type: ignore[union-attr]


def test_reader_without_the_lock_skips_and_moves_nothing(store: CheckpointStore) -> None:
    flip_bit(store.folder / "step-00000007" / "ema.safetensors", 0.5)
    assert store.newest(aside=False).step == 3  # type: ignore[union-attr]
    assert sorted(store.steps()) == [3, 7]


def test_step_decides_what_is_newest_not_the_clock(store: CheckpointStore) -> None:
    os.utime(store.folder / "step-00000003", (4e9, 4e9))
    assert store.newest().step == 7  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["step", "note", "files"])
def test_altered_manifest_without_a_new_digest_is_damaged(store: CheckpointStore, key: str) -> None:
    path = store.folder / "step-00000007"
    values = json.loads((path / MANIFEST).read_text())
    values[key] = {} if key == "files" else 8
    (path / MANIFEST).write_text(json.dumps(values, indent=1) + "\n")
    with pytest.raises(DamagedError, match="digest"):
        verify(path)


@given(st.data())
def test_any_edit_of_a_manifest_is_damage(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("edits") / "checkpoints")
    path = store.save(3, state(3), {"note": "ours"})
    whole = (path / MANIFEST).read_bytes()
    for _ in range(20):
        edited = bytearray(whole)
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, min(len(whole), start + 8)))
        edited[start:stop] = data.draw(st.binary(max_size=8))
        if bytes(edited) == whole:
            continue
        (path / MANIFEST).write_bytes(edited)
        with pytest.raises(DamagedError) as error:
            verify(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[]", "null", "7", '"x"', "{}", '{"digest": 1}', "[" * 20_000, "\xff", '{"files": []}']
)
def test_manifest_of_another_shape_is_damage(store: CheckpointStore, text: str) -> None:
    (store.folder / "step-00000007" / MANIFEST).write_bytes(text.encode("latin-1"))
    assert store.newest().step == 3  # type: ignore[union-attr]


def test_checkpoint_of_another_schema_is_refused_not_set_aside(store: CheckpointStore) -> None:
    path = store.folder / "step-00000007"
    values = json.loads((path / MANIFEST).read_text())
    del values["digest"]
    (path / MANIFEST).write_text(seal(values | {"schema": 99}))
    with pytest.raises(UserError, match=r"step-00000007 was written in schema 99 .* start a new run"):
        store.newest()
    assert sorted(store.steps()) == [3, 7]


def test_a_step_is_never_overwritten(store: CheckpointStore) -> None:
    before = {p.name: (p.stat().st_ino, p.read_bytes()) for p in (store.folder / "step-00000007").iterdir()}
    store.save(7, state(8), {"note": "other"})
    assert before == {p.name: (p.stat().st_ino, p.read_bytes()) for p in (store.folder / "step-00000007").iterdir()}


def test_the_oldest_go_after_the_new_one_is_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in range(1, 7):
        store.save(step, state(step), {})
        assert sorted(store.steps()) == list(range(max(1, step - 2), step + 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{step:08d}" for step in (4, 5, 6)]


def test_a_checkpoint_that_cannot_be_removed_stops_nothing(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    store.save(9, state(9), {})
    assert sorted(store.steps()) == [7, 9]
    assert "cannot remove old checkpoint" in caplog.text
    monkeypatch.undo()
    store.sweep()
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000007", "step-00000009"]


def test_sweep_removes_what_a_killed_save_left_and_nothing_else(store: CheckpointStore) -> None:
    torn = store.folder / ".tmp-step-00000009-17"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    flip_bit(store.folder / "step-00000007" / "ema.safetensors", 0.5)
    store.newest()
    store.sweep()
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000003", "step-00000007.damaged"]


class Recorder:
    """Records fsyncs and renames, by name, and can fail at the n-th of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int = 0) -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at
        fsync, rename = os.fsync, os.rename

        def recorded_fsync(descriptor: int) -> None:
            self._note("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            fsync(descriptor)

        def recorded_rename(path: Path, target: Path) -> Path:
            self._note("rename", str(target))
            rename(path, target)
            return target

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(Path, "rename", recorded_rename)

    def _note(self, call: str, path: str) -> None:
        self.calls.append(f"{call} {Path(path).name}")
        if len(self.calls) == self.fail_at:
            raise OSError(28, os.strerror(28), path)


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    recorder = Recorder(monkeypatch)
    store.save(3, state(3), {})
    temporary = f".tmp-{os.getpid()}-step-00000003"
    *files, folder, rename, parent = recorder.calls
    assert sorted(files) == sorted(f"fsync {name}" for name in FILES)
    assert (folder, rename, parent) == (f"fsync {temporary}", "rename step-00000003", "fsync checkpoints")


@pytest.mark.parametrize("call", range(1, 7))
def test_failed_save_is_one_line_and_leaves_earlier_checkpoints(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: int, one_line: Callable[[BaseException], str]
) -> None:
    with monkeypatch.context() as patch:
        Recorder(patch, fail_at=call)
        with pytest.raises(RunError) as error:
            store.save(9, state(9), {})
    line = one_line(error.value)
    assert "No space left on device" in line
    assert "step 7 is intact" in line
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-00000003", "step-00000007"]
    assert verify(store.folder / "step-00000007")["step"] == 7
    store.save(9, state(9), {})
    assert store.newest().step == 9  # type: ignore[union-attr]


def test_failed_first_save_says_that_there_is_none_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch, fail_at=1)
    with pytest.raises(RunError, match="there is none before it"):
        CheckpointStore(tmp_path).save(1, state(1), {})


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = CheckpointStore(tmp_path).save(1, state(1), {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_checkpoint_of_a_step_is_found_or_refused(store: CheckpointStore) -> None:
    assert store.at(3).step == 3
    with pytest.raises(DamagedError, match="No such file"):
        store.at(4)
