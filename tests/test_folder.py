"""The run folder: one trainer at a time, no silent change of configuration, one log line per step."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mounts import shell
from runs import environment, small_run
from udit.errors import RunError, UserError
from udit.run.config import MAY_CHANGE, changed_keys
from udit.training.folder import (
    MetricsLog,
    RunLock,
    check_resumable,
    open_folder,
    read_run,
    replace_text,
    write_run,
)

OneLine = Callable[[BaseException], str]
HOLD = """
import sys, time
from pathlib import Path
from udit.training.folder import RunLock
lock = RunLock(Path(sys.argv[1]))
sys.stdout.write("held\\n"); sys.stdout.flush()
time.sleep(60)
"""
OPEN = """
import sys
from udit.run.recipes import load_run
from udit.training.folder import open_folder
try:
    open_folder(load_run("digits", ["out=" + sys.argv[1]]), int(sys.argv[2])).release()
except ValueError as error:
    sys.exit(str(error))
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock of a folder."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_second_trainer_is_refused_with_the_holder_of_the_lock(tmp_path: Path, one_line: OneLine) -> None:
    holder = hold(tmp_path)
    try:
        with pytest.raises(UserError) as error:
            RunLock(tmp_path)
        line = one_line(error.value)
        assert f"is in use by process {holder.pid} on {socket.gethostname()}" in line
    finally:
        holder.kill()
        holder.wait()
    assert holder.stdout is not None
    holder.stdout.close()
    RunLock(tmp_path).release()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_lock_dies_with_its_holder(tmp_path: Path, number: signal.Signals) -> None:
    with hold(tmp_path) as holder:
        holder.send_signal(number)
        holder.wait(20)
        RunLock(tmp_path).release()


def test_two_locks_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()


def test_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    fork = multiprocessing.get_context("fork")
    started, done = fork.Event(), fork.Event()
    worker = fork.Process(target=lambda: (started.set(), done.wait(20)))
    worker.start()
    try:
        assert started.wait(20)
        lock.release()
        RunLock(tmp_path).release()
    finally:
        done.set()
        worker.join()


def test_folder_is_made_and_locked(tmp_path: Path) -> None:
    run = small_run(tmp_path / "a" / "b")
    lock = open_folder(run, 1)
    assert sorted(p.name for p in run.out.iterdir()) == ["checkpoints", "run.lock", "samples"]
    with pytest.raises(UserError, match="in use"):
        open_folder(run, 1)
    lock.release()


def test_file_in_the_folders_place_is_refused(tmp_path: Path, one_line: OneLine) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write to run folder") as error:
            open_folder(small_run(out), 1)
        one_line(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_too_little_room_for_a_checkpoint_is_refused_and_the_lock_given_back(tmp_path: Path, one_line: OneLine) -> None:
    with pytest.raises(UserError, match=r"takes 1,000,000,000,000\.0 MB and .* MB free; make room") as error:
        open_folder(small_run(tmp_path), 10**18)
    one_line(error.value)
    RunLock(tmp_path).release()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ('mount -t tmpfs -o ro none "$1"; "$2" -c "$3" "$1" 1', "Read-only file system"),
        (
            'mount -t tmpfs none "$1"; mkdir "$1/checkpoints"; mount -o remount,ro "$1"; "$2" -c "$3" "$1" 1',
            "Read-only",
        ),
        ('mount -t tmpfs -o size=64k none "$1"; "$2" -c "$3" "$1" 1000000', "make room"),
        ('mount -t tmpfs -o size=64k none "$1"; yes > "$1/full" || "$2" -c "$3" "$1" 1', "No space left on device"),
        ('mount -t tmpfs -o nr_inodes=2 none "$1"; "$2" -c "$3" "$1" 1', "No space left on device"),
    ],
)
def test_folder_that_cannot_be_written_is_refused_on_a_real_mount(tmp_path: Path, script: str, wanted: str) -> None:
    ended = shell(script, tmp_path, sys.executable, OPEN, **environment())
    *noise, line = ended.stderr.splitlines()
    assert all(text.startswith("yes: ") for text in noise)
    assert wanted in line
    assert str(tmp_path) in line
    assert ended.returncode == 1


def test_run_is_written_and_read_back(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    assert read_run(tmp_path) is None
    write_run(run)
    assert read_run(tmp_path) == run.plain()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1, 2]", b"a: [", b"", b"a: 1\na: 2"])
def test_unreadable_run_yaml_is_a_one_line_error(tmp_path: Path, content: bytes, one_line: OneLine) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.yaml") as error:
        read_run(tmp_path)
    one_line(error.value)


def test_keys_that_may_change_may_and_no_other(tmp_path: Path, one_line: OneLine) -> None:
    old = small_run(tmp_path / "old").plain()
    new = small_run(
        tmp_path / "new",
        "training.steps=9",
        "training.log_every=2",
        "training.save_every=4",
        "training.sample_every=5",
        "training.check_every=6",
        "training.keep=7",
        "training.workers=1",
        "training.device=cpu",
        "training.timeout=8",
        "training.accumulation=3",
        "training.checkpoint_activations=true",
        "training.parallel=fsdp",
        "training.shards=1",
        "sampling.steps=2",
        "evaluation.batch_size=3",
        "name=other",
    ).plain()
    changed = {key for key in old if old[key] != new[key]} - {"training"}
    changed |= {f"training.{key}" for key, value in old["training"].items() if new["training"][key] != value}
    of_other_data = {"latents", "data.root", "data.test_root", "data.labels", "data.verify"}
    of_texts = {"text.source", "text.revision"}
    of_cuda = {"training.cuda_graphs"}
    assert changed == MAY_CHANGE - of_other_data - of_texts - of_cuda
    here, there = (
        {"latents": place, "data": dict.fromkeys(("root", "test_root", "labels", "verify"), place)} for place in "ab"
    )
    assert changed_keys(here, there) == []
    check_resumable(old, new, tmp_path / "run.yaml")
    for override, told in {
        "training.lr=1e-3": "training.lr was 0.002 in",
        "seed=1": "seed was 0 in",
        "training.batch_size=4": "training.batch_size was 6",
        "model.width=16": "model.width was 8",
        "diffusion.steps=100": "diffusion.steps was 1000",
        "data.test_share=0.2": "data.test_share was 0.15",
    }.items():
        with pytest.raises(UserError) as error:
            check_resumable(old, small_run(tmp_path / "new", override).plain(), tmp_path / "run.yaml")
        line = one_line(error.value)
        assert told in line
        assert "start a new run with out=DIR" in line


def test_keys_that_an_older_version_did_not_write_are_defaults(tmp_path: Path) -> None:
    new = small_run(tmp_path).plain()
    old = new | {"diffusion": {key: value for key, value in new["diffusion"].items() if key != "betas"}}
    check_resumable(old, new, tmp_path)
    with pytest.raises(UserError, match=r"diffusion\.betas was 'linear' in"):
        check_resumable(old, small_run(tmp_path, "diffusion.betas=scaled-linear").plain(), tmp_path)
    with pytest.raises(UserError, match=r"gone was 1 in"):
        check_resumable({"gone": 1}, new, tmp_path)


def test_several_changed_keys_are_counted(tmp_path: Path) -> None:
    old, new = (
        small_run(tmp_path).plain(),
        small_run(tmp_path, "seed=1", "training.lr=1", "training.betas=[0, 0]").plain(),
    )
    with pytest.raises(UserError, match=r"seed was 0 .* \(and 2 more: training\.lr, training\.betas\)"):
        check_resumable(old, new, tmp_path)


def test_refused_text_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    replace_text(path, "old\n")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match="Input/output error"):
        replace_text(path, "new\n")
    assert path.read_text() == "old\n"


def lines(path: Path) -> list[int]:
    """The steps of a log."""
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_log_goes_on_after_the_resumed_step_with_one_line_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in range(1, 8):
        log.write({"step": step})
    log.sync()
    log.close()
    log = MetricsLog(path, 4)
    assert lines(path) == [1, 2, 3, 4]
    for step in range(5, 10):
        log.write({"step": step})
    log.close()
    assert lines(path) == list(range(1, 10))


@pytest.mark.parametrize(
    "tail", ['{"step": 4, "lo', '{"step": 4}', "\x00\x00\x00", "[]\n", '{"loss": 1}\n', '{"step": "a"}\n', "ÿ"]
)
def test_torn_or_foreign_last_line_is_taken_back(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n' + tail.encode("latin-1"))
    log = MetricsLog(path, 3)
    log.write({"step": 4})
    log.close()
    assert lines(path) == [1, 2, 3, 4]


def test_full_disk_under_the_log_is_one_line_and_closing_is_quiet(tmp_path: Path, one_line: OneLine) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.close()
    log._stream = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(RunError, match="No space left on device") as error:
        log.write({"step": 1})
    one_line(error.value)
    log.close()
