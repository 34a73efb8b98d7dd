"""The memory at hand is found wherever it is limited, and a step that takes more is told before it is taken."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from conftest import ErrorOf, succeeds
from runs import RECIPE, SMALL, small_run
from udit.errors import UserError
from udit.training import capacity, memory
from udit.training.capacity import AtHand, at_hand, check_memory, shortage
from udit.training.memory import Memory, estimate
from udit.training.trainer import Trainer

CPU = torch.device("cpu")
GB = 10**9
HUGE = Memory(batch=1_000, weights=GB, gradients=GB, optimizer=GB, averages=GB, activations=20 * GB, total=24 * GB)


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:  16000000 kB\nMemFree: 1 kB\nMemAvailable:  8000000 kB\nSwapTotal: 1000000 kB\n"


@pytest.fixture
def no_ulimit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("no_ulimit")
def test_machine_without_limits_has_what_is_available_and_ranks_share_it(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO)
    assert at_hand(CPU, root=tmp_path) == AtHand(8_192_000_000, 17_408_000_000, "on this machine")
    assert at_hand(CPU, 2, tmp_path) == AtHand(4_096_000_000, 8_704_000_000, "on this machine")


@pytest.mark.usefixtures("no_ulimit")
def test_tightest_control_group_counts_and_its_cached_files_make_room(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/user/job/step\n")
    groups = tmp_path / "sys" / "fs" / "cgroup"
    for name, most, used, cached in (("user", "max", 9, 0), ("user/job", f"{4 * GB}", 3 * GB, 2 * GB)):
        folder = groups / name
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    assert at_hand(CPU, root=tmp_path) == AtHand(3 * GB, 4 * GB, "within this process's control group")
    for file, text in (("memory.max", GB), ("memory.current", 0)):  # a container: its own group is the topmost
        (groups / file).write_text(f"{text}\n")
    assert at_hand(CPU, root=tmp_path) == AtHand(GB, GB, "within this process's control group")


@pytest.mark.usefixtures("no_ulimit")
def test_control_groups_of_version_1_are_read(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="9:cpu:/\n4:memory,hugetlb:/box\n0::/\n")
    box = tmp_path / "sys" / "fs" / "cgroup" / "memory" / "box"
    box.mkdir(parents=True)
    (box.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (box.parent / "memory.usage_in_bytes").write_text("5\n")
    (box / "memory.limit_in_bytes").write_text(f"{2 * GB}\n")
    (box / "memory.usage_in_bytes").write_text(f"{GB}\n")
    assert at_hand(CPU, root=tmp_path) == AtHand(GB, 2 * GB, "within this process's control group")


def test_ulimit_is_lessened_by_what_is_mapped_and_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, proc__meminfo=MEMINFO, proc__self__statm="1000 1 1 1 0 200 0")
    limits = {resource.RLIMIT_AS: 10**8, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    left = 10**8 - 1000 * resource.getpagesize()
    assert at_hand(CPU, 4, tmp_path) == AtHand(left, left, "within ulimit -v")
    limits[resource.RLIMIT_DATA] = 10**7
    left = 10**7 - 200 * resource.getpagesize()
    assert at_hand(CPU, 4, tmp_path) == AtHand(left, left, "within ulimit -d")


def test_this_machine_has_some_memory() -> None:
    limit = at_hand(CPU)
    assert limit is None or 0 < limit.free <= limit.most


def test_shortage_tells_how_many_images_would_fit_and_what_to_turn_down(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    assert shortage(run, HUGE, AtHand(24 * GB, 30 * GB, "here")) is None
    assert shortage(run, HUGE, AtHand(14 * GB, 30 * GB, "here")) == (
        "a training step takes about 24.0 GB for 1,000 images per backward pass and 14.0 GB are free here (about 500 "
        "would fit); lower training.batch_size, raise training.accumulation (now 1), or set "
        "training.checkpoint_activations=selective or true"
    )
    lean = small_run(tmp_path, "training.checkpoint_activations=true", "training.accumulation=3")
    told = shortage(lean, HUGE, AtHand(3 * GB, 30 * GB, "here"))
    assert told is not None
    assert told.endswith(
        "(not even one would fit, take a smaller model); lower training.batch_size, or raise training.accumulation "
        "(now 3)"
    )


@pytest.mark.parametrize(
    ("most", "device", "words", "refused"),
    [
        (20 * GB, "cpu", [], True),
        (22 * GB, "cpu", [], False),  # the estimate may be a tenth too high
        (30 * GB, "cpu", [], False),
        (20 * GB, "cuda", [], False),
        (20 * GB, "cpu", ["training.compile=true"], False),
    ],
)
def test_what_cannot_fit_is_refused_and_what_might_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
    device: str,
    words: list[str],
    refused: bool,
) -> None:
    monkeypatch.setattr(capacity, "at_hand", lambda *_: AtHand(10 * GB, most, "here"))
    monkeypatch.setattr(capacity, "_surely_fits", lambda *_: False)
    monkeypatch.setattr(memory, "estimate", lambda *_: HUGE)
    run = small_run(tmp_path, *words)
    if refused:
        with pytest.raises(UserError, match=r"^a training step takes about 24\.0 GB"):
            check_memory(run, 1, torch.device(device), 1)
    else:
        check_memory(run, 1, torch.device(device), 1)
        assert caplog.messages == [shortage(run, HUGE, AtHand(10 * GB, most, "here"))]


@pytest.mark.slow
def test_impossible_batch_is_refused_before_the_folder_is_made(
    tmp_path: Path, error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capacity, "at_hand", lambda *_: AtHand(10**6, 10**6, "here"))
    monkeypatch.setattr(memory, "at_hand", lambda *_: AtHand(10**6, 10**6, "here"))
    monkeypatch.setattr(memory, "LARGE", 4)
    words = ["train", RECIPE, *SMALL, "training.batch_size=99996", f"out={tmp_path / 'run'}"]
    line = error_of(*words)
    assert "for 99,996 images per backward pass and 0.0 GB are free here" in line
    assert not (tmp_path / "run").exists()
    assert succeeds(capsys, *words, "--dry-run").splitlines()[-1] == f"# here {line}"


def test_small_step_is_not_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("an estimate takes longer than this run")

    monkeypatch.setattr(memory, "estimate", fail)
    Trainer(small_run(tmp_path))


@pytest.mark.slow
def test_large_step_is_extrapolated_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(tmp_path, "training.batch_size=36")
    counted = estimate(run)
    monkeypatch.setattr(memory, "LARGE", 8)
    assert estimate(run) == counted
