"""Real processes on real faults: every crash point of a save, full disks, signals to whole groups, a rank's NaN.

Each ends in one clear line, loses nothing, and the same command resumes to the bits of a run without a fault.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file

from forks import Forked
from mounts import shell
from runs import (
    SMALL,
    command,
    environment,
    finish,
    finished_at,
    free_port,
    image_folder,
    launch,
    metrics,
    newest,
    state_hash,
    train,
)
from udit.checkpoint import verify
from udit.models.build import build
from udit.store import read_run_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = "training.steps=40"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for images that two processes per rank read."""
    return [*image_folder(tmp_path_factory.mktemp("data") / "pictures"), "training.workers=2"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> Callable[[int], str]:
    """The state hash of a run without a fault, by ranks."""
    hashes: dict[int, str] = {}

    def of(ranks: int) -> str:
        if ranks not in hashes:
            out = tmp_path_factory.mktemp("unbroken") / str(ranks)
            finished(launch(out, STEPS, *data, ranks=ranks))
            hashes[ranks] = state_hash(out)
        return hashes[ranks]

    return of


def finished(processes: list[Forked]) -> None:
    """Waits for processes that succeed."""
    for code, errors in finish(processes):
        assert code == 0, errors


def wait_for_steps(out: Path, steps: int, processes: Sequence[subprocess.Popen[str] | Forked]) -> None:
    """Waits until the log has some lines."""
    log = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_bytes().count(b"\n") >= steps):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)


def troubles(errors: str) -> list[str]:
    """The lines of standard error without those on what is trained."""
    return [line for line in errors.splitlines() if not re.match(r"udit: (new run in |resuming |training )", line)]


def one_error(errors: str) -> str:
    """The only error of an output, its last line; a disk that is full may have refused by-products before."""
    *others, line = troubles(errors)
    assert all(re.match(r"udit: (TensorBoard's|the sample grid) .* all else goes on$", other) for other in others)
    assert line.startswith("udit: error: ")
    return line


# -- signals and lost processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_group_saves_leaves_and_resumes_to_the_same_bits(
    tmp_path: Path, data: list[str], unbroken: Callable[[int], str], ranks: int, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    pipes = {"stdout": subprocess.PIPE, "start_new_session": True}
    processes = launch(out, STEPS, *data, ranks=ranks, **pipes)
    wait_for_steps(out, 5, processes)
    for process in processes:
        os.killpg(process.pid, number)  # its reading workers too
    said = processes[0].communicate(timeout=200)[0]
    for code, errors in finish(processes):
        assert code == 128 + number, errors
    [step] = re.findall(r"^stopped at step (\d+), saved; the same command goes on from there$", said, re.MULTILINE)
    assert newest(out).name == f"step-{int(step):08d}"
    assert 5 <= int(step) < 40
    finished(launch(out, STEPS, *data, ranks=ranks))
    assert state_hash(out) == unbroken(ranks)


def test_killed_trainer_leaves_no_worker_that_keeps_the_lock(
    tmp_path: Path, data: list[str], unbroken: Callable[[int], str]
) -> None:
    out = tmp_path / "out"
    [process] = launch(out, STEPS, *data, stderr=subprocess.DEVNULL)
    wait_for_steps(out, 8, [process])
    process.kill()
    process.wait()
    finished(launch(out, STEPS, *data))  # at once, while its workers may still be there
    assert state_hash(out) == unbroken(1)


@pytest.mark.parametrize("victim", [0, 1])
def test_lost_rank_is_one_line_of_the_others_and_the_same_command_goes_on(
    tmp_path: Path, data: list[str], unbroken: Callable[[int], str], victim: int
) -> None:
    out = tmp_path / "out"
    processes = launch(out, STEPS, *data, ranks=2)
    wait_for_steps(out, 8, processes)
    processes[victim].kill()
    code, errors = finish(processes)[1 - victim]
    assert code == 1
    assert f"rank {1 - victim} of 2 lost a peer" in one_error(errors)
    finished(launch(out, STEPS, *data, ranks=2))
    assert state_hash(out) == unbroken(2)


def test_frozen_rank_ends_the_run_within_the_timeout(tmp_path: Path, data: list[str]) -> None:
    processes = launch(tmp_path, STEPS, *data, "training.timeout=10", ranks=2)
    wait_for_steps(tmp_path, 3, processes)
    processes[1].send_signal(signal.SIGSTOP)
    _, errors = processes[0].communicate(timeout=60)
    processes[1].kill()
    finish(processes)
    assert "rank 0 of 2 lost a peer" in one_error(errors)


def test_second_trainer_in_the_same_folder_is_kept_out(tmp_path: Path, data: list[str]) -> None:
    unending = "training.steps=1000000"
    [first] = launch(tmp_path, unending, *data)
    wait_for_steps(tmp_path, 1, [first])
    [(code, errors)] = finish(launch(tmp_path, unending, *data))
    assert code == 2
    assert f"is in use by process {first.pid} on " in one_error(errors)
    assert first.poll() is None
    first.terminate()
    assert finish([first])[0][0] == 128 + signal.SIGTERM


def test_torchrun_trains_saves_at_its_signal_and_resumes_to_the_same_bits(
    tmp_path: Path, data: list[str], unbroken: Callable[[int], str]
) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words += ["--log-dir", str(tmp_path / "logs")]  # otherwise a folder in /tmp stays
    words += command(out, STEPS, *data)[1:]
    launcher = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for_steps(out, 5, [launcher])
    launcher.terminate()
    launcher.communicate(timeout=200)
    assert 5 <= verify(newest(out))["step"] < 40
    again = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stderr
    assert state_hash(out) == unbroken(2)


# -- one rank's losses ---------------------------------------------------------------------------------------------

CORRUPT_LOSSES = """
import os, sys
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as ``main`` would, but torch is imported before it here
from udit.cli import main
from udit.training.learner import Learner
first, last = int(sys.argv[1]), int(sys.argv[2])
honest = Learner.losses
def losses(self, batch):
    result = honest(self, batch)
    if os.environ["RANK"] == "1" and first <= batch.positions[0] // 6 <= last:
        sys.stderr.write(f"corrupted {self.world.rank}: {batch.ids[2]}\\n")
        result.loss[2] *= float("nan")
    return result
Learner.losses = losses
main(sys.argv[3:])
"""


def corrupt_losses(out: Path, steps: int, first: int, last: int, data: list[str]) -> list[tuple[int, str]]:
    """Trains on two ranks; the third sample of rank 1 loses its loss from step ``first`` to ``last``."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    arguments = command(out, *SMALL, f"training.steps={steps}", *data)[3:]
    words = [sys.executable, "-c", CORRUPT_LOSSES, str(first), str(last), *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    ranks = [environment(RANK=str(rank), **group) for rank in range(2)]
    return finish([subprocess.Popen(words, env=rank, **quiet) for rank in ranks])


def test_nan_of_one_rank_reaches_no_rank_and_is_named(tmp_path: Path, data: list[str]) -> None:
    finished(launch(tmp_path / "before", *SMALL, "training.steps=4", *data, ranks=2))
    (code, errors), (other, corrupted) = corrupt_losses(tmp_path / "after", 5, first=4, last=4, data=data)
    assert code == other == 0
    [line] = troubles(errors)
    [bad] = metrics(tmp_path / "after")[4]["skipped_samples"]  # type: ignore[misc]
    assert line == f"udit: step 5 skipped: no finite loss or gradient with samples {bad}"
    [told] = corrupted.splitlines()
    assert told.startswith("corrupted 1: ")
    assert state_hash(tmp_path / "after") == state_hash(tmp_path / "before")


def test_three_nan_of_one_rank_stop_all_and_one_reports(tmp_path: Path, data: list[str]) -> None:
    finished(launch(tmp_path / "before", *SMALL, "training.steps=4", *data, ranks=2))
    (code, errors), (other, corrupted) = corrupt_losses(tmp_path / "after", 20, first=4, last=99, data=data)
    assert code == other == 1
    assert "stopped after step 7: 3 steps in a row had no finite loss" in errors.splitlines()[-1]
    assert all(line.startswith("corrupted 1: ") for line in corrupted.splitlines())
    assert state_hash(tmp_path / "after") == state_hash(tmp_path / "before")


# -- every crash point of one save ---------------------------------------------------------------------------------

CALLS = "mkdir,write,pwrite64,writev,ftruncate,fsync,fdatasync,rename,renameat,renameat2,chmod,unlink,unlinkat,rmdir"
NEEDS_STRACE = pytest.mark.skipif(not shutil.which("strace"), reason="this machine has no strace")


class Call(NamedTuple):
    """A system call of the main thread."""

    name: str
    count: int
    """It is the count-th of its name."""
    text: str
    """The call without its process id, descriptors and random names."""


def trace(out: Path, log: Path, data: list[str], *options: str) -> tuple[int, str, list[Call]]:
    """Trains ten steps under strace: the exit code, standard error, and the main thread's calls."""
    [process] = launch(out, *SMALL, "training.steps=10", *data, "training.workers=0", traced=True)
    words = ["strace", "-f", "-y", "-s0", "-o", str(log), "-e", f"trace={CALLS}", *options, "-p", str(process.pid)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL):
        [(code, errors)] = finish([process])
    main = str(process.pid)
    calls, counts = [], Counter[str]()
    lines = log.read_text(encoding="utf-8").splitlines()
    for line in lines:
        thread, text = line.split(maxsplit=1)
        if thread == main and (name := re.match(rf"({CALLS.replace(',', '|')})\(", text)):
            counts[name[1]] += 1
            plain = re.sub(rf"\.tmp\w{{6}}\b|-{main}\b|\b\d+(?=<)|= .*|{re.escape(str(out))}", "", text)
            calls.append(Call(name[1], counts[name[1]], plain.strip()))
    return code, errors, calls


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> tuple[str, list[Call]]:
    """The state hash of ten traced steps, and the calls of the save at step 9, which also removes step 3."""
    folder = tmp_path_factory.mktemp("traced")
    code, errors, calls = trace(folder / "out", folder / "log", data)
    assert code == 0, errors
    first = next(i for i, call in enumerate(calls) if "step-00000009" in call.text) - 1
    last = next(i for i, call in enumerate(calls) if call.name == "rmdir" and "step-00000003" in call.text)
    assert calls[first].text.startswith("fsync") and "metrics.jsonl" in calls[first].text
    return state_hash(folder / "out"), calls[first : last + 1]


def place(call: Call) -> str:
    """What a call does to which file, without sizes and outcome; a folder lists its files in no order."""
    return call.name if call.name == "unlinkat" else re.split(r"\)|, \d|, \"\"| <unf", call.text)[0]


def strike(call: Call, fault: str, folder: Path, data: list[str]) -> tuple[Path, int, str]:
    """Trains ten steps with a fault at one call: the run folder, the exit code, standard error.

    strace strikes by number, and on a busy machine a run now and then makes a call fewer before it gets there. What was
    struck is looked at, and such a run does not count.
    """
    folder.mkdir(exist_ok=True)
    for attempt in range(3):
        out = folder / f"out-{attempt}"
        inject = f"inject={call.name}:{fault}:when={call.count}"
        code, errors, seen = trace(out, folder / f"log-{attempt}", data, "-e", inject)
        struck = next((other for other in seen if other[:2] == call[:2]), None)
        if struck is not None and place(struck) == place(call):
            return out, code, errors
    raise AssertionError(f"no run could be struck at {call}, the last one was at {struck}")


def resume(out: Path, data: list[str]) -> str:
    """The same run, in this process; its state hash."""
    assert train(out, "training.steps=10", *data, "training.workers=0") == finished_at(out, 10)
    return state_hash(out)


@NEEDS_STRACE
def test_killed_at_every_system_call_of_a_save_resumes_to_the_same_bits(
    tmp_path: Path, data: list[str], traced: tuple[str, list[Call]], record_property: Callable[[str, object], None]
) -> None:
    wanted, calls = traced
    assert Counter(call.name for call in calls)["fsync"] == 7  # the log, four files, their folder, its parent
    assert {"mkdir", "write", "rename", "renameat", "unlinkat", "rmdir"} <= {call.name for call in calls}

    def kill(i: int) -> Path:
        out, code, errors = strike(calls[i], "signal=KILL", tmp_path / str(i), data)
        assert code == -signal.SIGKILL, errors
        return out

    with ThreadPoolExecutor(2) as pool:
        killed = list(pool.map(kill, range(len(calls))))
    before = Counter(verify(newest(out))["step"] for out in killed)
    assert before.keys() == {6, 9}, "some points lie before the new checkpoint is there, some after"
    record_property("crash_points", len(killed))
    for out in killed:
        assert resume(out, data) == wanted


@NEEDS_STRACE
@pytest.mark.parametrize(
    ("name", "pick", "error", "told"),
    [
        ("write", 1, "ENOSPC", "No space left on device"),
        ("write", -1, "ENOSPC", "No space left on device"),
        ("fsync", 2, "EIO", "Input/output error"),
        ("renameat", 0, "EIO", "Input/output error"),
        ("rename", 0, "ENOSPC", "No space left on device"),
        ("mkdir", 0, "EDQUOT", "Disk quota exceeded"),
    ],
)
def test_save_that_the_disk_refuses_once_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, data: list[str], traced: tuple[str, list[Call]], name: str, pick: int, error: str, told: str
) -> None:
    wanted, calls = traced
    call = [call for call in calls if call.name == name][pick]
    out, code, errors = strike(call, f"error={error}", tmp_path, data)
    assert code == 1
    line = one_error(errors)
    assert told in line
    assert "step 6 is intact" in line
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert resume(out, data) == wanted


# -- full and read-only disks --------------------------------------------------------------------------------------

DISK = """
out=$1; shift
mkdir "$out/disk"; mount -t tmpfs -o size=3m none "$out/disk"
cat > "$out/disk/full" < /dev/zero 2> /dev/null || true
"$@" 2> "$out/at-start" && exit 91 || [ $? = 2 ]
rm "$out/disk/full"

"$@" 2> "$out/later" & trainer=$!
while ! [ -d "$out/disk/run/checkpoints/step-00000007" ]; do kill -0 $trainer; sleep 0.02; done
cat > "$out/disk/full" < /dev/zero 2> /dev/null || true
wait $trainer && exit 92 || [ $? = 1 ]
cp -r "$out/disk/run" "$out/after-later"
rm "$out/disk/full"

"$@" 2> "$out/made-room"
mount -o remount,ro "$out/disk"
"$@" 2> "$out/read-only" && exit 93 || [ $? = 2 ]
cp -r "$out/disk/run" "$out/end"
"""


def test_full_and_read_only_disks_are_one_line_and_lose_nothing(
    tmp_path: Path, data: list[str], unbroken: Callable[[int], str]
) -> None:
    arguments = command(tmp_path / "disk" / "run", STEPS, *data)
    ended = shell(DISK, tmp_path, *arguments, **environment(TMPDIR="/tmp"))
    assert ended.returncode == 0, ended.stderr + ended.stdout
    said = {name: (tmp_path / name).read_text() for name in ("at-start", "later", "read-only")}
    assert "No space left on device" in one_error(said["at-start"])
    assert "No space left on device" in one_error(said["later"])
    assert "Read-only file system" in one_error(said["read-only"])
    assert verify(newest(tmp_path / "after-later"))["step"] >= 7
    assert state_hash(tmp_path / "end") == unbroken(1)
    assert [line["step"] for line in metrics(tmp_path / "end")] == list(range(1, 41))


SAMPLES = """
mkdir "$1/disk"; mount -t tmpfs -o size=64k none "$1/disk"
"$2" -m udit sample "$3" --no-progress --seeds 0-499 --out "$1/disk/samples" 2> "$1/full" && exit 91 || [ $? = 1 ]
rm -r "$1/disk/samples"; mount -o remount,ro "$1/disk"
"$2" -m udit sample "$3" --no-progress --out "$1/disk/samples" 2> "$1/read-only" && exit 92 || [ $? = 2 ]
"""


def test_full_and_read_only_disks_under_samples_are_one_line(tmp_path: Path) -> None:
    train(tmp_path / "run", "training.steps=1")
    ended = shell(SAMPLES, tmp_path, sys.executable, tmp_path / "run", **environment())
    assert ended.returncode == 0, ended.stderr
    assert "No space left on device" in one_error((tmp_path / "full").read_text())
    assert "Read-only file system" in one_error((tmp_path / "read-only").read_text())


# -- numbers of ranks and launchers ------------------------------------------------------------------------------


STEADY = """
import sys
from runs import steady_adam
from udit.cli import main
with steady_adam():
    main(sys.argv[1:])
"""


def launch_steady(out: Path, *overrides: str, ranks: int) -> None:
    """Trains on some ranks with an Adam whose steps do not hang on the sign of rounding, and waits."""
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [sys.executable, "-c", STEADY, *command(out, *overrides)[3:]]
    environments = [
        environment(PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]), RANK=str(rank), **group)
        for rank in range(ranks)
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    finished([subprocess.Popen(words, env=one, **quiet) for one in environments])


def test_run_that_changes_its_number_of_ranks_learns_the_same_up_to_rounding(tmp_path: Path, data: list[str]) -> None:
    for steps, ranks in ((7, 1), (14, 3), (21, 2)):
        launch_steady(tmp_path / "changing", f"training.steps={steps}", *data, ranks=ranks)
    launch_steady(tmp_path / "steady", "training.steps=21", *data, ranks=1)
    changing, steady = metrics(tmp_path / "changing"), metrics(tmp_path / "steady")
    assert [line["step"] for line in changing] == list(range(1, 22))
    for one, other in zip(changing, steady, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5), "the same samples, times and noise"
    ours, theirs = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("changing", "steady"))
    run = read_run_config(tmp_path / "steady")
    start = {name: p.detach() for name, p in build(run.model, seed=run.seed).named_parameters()}
    moved = sum((theirs[name] - start[name]).square().sum() for name in theirs)
    apart = sum((theirs[name] - ours[name]).square().sum() for name in theirs)
    assert 0 < (apart / moved) ** 0.5 < 1e-3


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_without_peers_gives_up_within_the_timeout(tmp_path: Path, data: list[str], rank: int) -> None:
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = command(tmp_path / "out", *data, "training.timeout=3")
    ended = subprocess.run(
        words, env=environment(RANK=str(rank), **group), capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 2
    line = one_error(ended.stderr)
    assert f"rank {rank} of 2 met no peers at 127.0.0.1:{group['MASTER_PORT']} within 3 s" in line
    assert not (tmp_path / "out").exists()
