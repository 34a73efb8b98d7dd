"""A step sees the same images on any number of ranks, workers and accumulated parts."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runs import environment
from udit.data.batches import Batch, batches
from udit.data.order import flips, indices
from udit.data.parcel import ALIGNED, Parcel
from udit.data.sources import InMemory, Pixels
from udit.errors import RunError, UserError

PARENT = os.getpid()


def numbered(count: int = 30) -> InMemory:
    """Image i holds i, and one at its left edge."""
    pixels = np.zeros((count, 1, 2, 2), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    pixels[..., 0] += 100
    return InMemory(pixels, np.arange(count) % 4, [f"picture {i}" for i in range(count)])


PART = np.arange(2, 29, 2)
SETTINGS: dict[str, Any] = {"seed": 5, "start": 0, "stop": 4, "global_batch": 12}


def read(source: InMemory | None = None, **changes: Any) -> list[list[Batch]]:
    return list(batches(source or numbered(), PART, **SETTINGS | changes))


def test_batch_holds_what_it_names() -> None:
    for (batch,) in read():
        assert batch.x.dtype == torch.uint8
        assert batch.y.dtype == torch.int64
        assert batch.x[:, 0, 0, 1].tolist() == batch.ids
        assert batch.y.tolist() == [i % 4 for i in batch.ids]
        assert batch.ids == [PART[i] for i in indices(len(PART), 5, batch.positions)]


@pytest.mark.parametrize(("world", "accumulation"), [(1, 3), (2, 1), (3, 2), (4, 3)])
def test_a_step_is_the_same_on_any_number_of_ranks(world: int, accumulation: int) -> None:
    ranks = [read(rank=r, world=world, accumulation=accumulation) for r in range(world)]
    for step, (whole,) in enumerate(read()):
        parts = [ranks[r][step][m] for m in range(accumulation) for r in range(world)]
        assert [p for part in parts for p in part.positions] == whole.positions
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)


def test_starting_late_continues_the_same_stream() -> None:
    assert [b.ids for (b,) in read(start=2)] == [b.ids for (b,) in read()][2:]


def test_mirroring_follows_the_position() -> None:
    ((batch,),) = read(stop=1, flip=True)
    assert (batch.x[:, 0, 0, 0] < batch.x[:, 0, 0, 1]).tolist() == flips(5, batch.positions)
    assert {True, False} == set(flips(5, batch.positions))


def test_mirroring_leaves_the_source_alone() -> None:
    source = numbered()
    before = source.pixels.copy()
    read(source, flip=True)
    assert np.array_equal(source.pixels, before)


def test_workers_read_what_the_caller_would() -> None:
    inside, outside = read(accumulation=2, flip=True), read(accumulation=2, flip=True, workers=2)
    assert len(inside) == len(outside) == 4
    for ours, theirs in zip(inside, outside, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)
            assert (a.ids, a.positions) == (b.ids, b.positions)


def test_batch_that_does_not_split_names_the_remedy() -> None:
    with pytest.raises(UserError, match=r"12 does not split over 5 ranks.*multiple of 5"):
        batches(numbered(), PART, seed=0, start=0, stop=1, global_batch=12, world=5)
    with pytest.raises(UserError, match="does not split"):
        batches(numbered(), PART, seed=0, start=0, stop=1, global_batch=0)


class Broken(InMemory):
    def image(self, i: int) -> Pixels:
        raise UserError(f"picture {self.names[i]!r} cannot be read; remove it")


class Deadly(InMemory):
    def image(self, i: int) -> Pixels:
        assert os.getpid() != PARENT
        os._exit(1)


class Signals(InMemory):
    """Images whose pixels are the number of signals, of two, that their reader ignores."""

    def image(self, i: int) -> Pixels:
        ignored = [signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGINT, signal.SIGTERM)]
        return np.full((1, 2, 2), sum(ignored), np.uint8)


def like(kind: type[InMemory]) -> InMemory:
    source = numbered()
    return kind(source.pixels, source.labels, source.names)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_is_a_one_line_error_with_and_without_workers(workers: int) -> None:
    with pytest.raises(UserError, match=r"^picture 'picture \d+' cannot be read; remove it$"):
        read(like(Broken), workers=workers)


@pytest.mark.parametrize("together", [1, 3, 9])
def test_workers_that_read_several_batches_at_a_time_read_the_same(together: int) -> None:
    def draw(positions: Any, read: Any) -> dict[str, torch.Tensor]:
        return {"t": torch.tensor(positions, dtype=torch.float64), "keys": torch.tensor(positions)[:, None]}

    for own, (batch,) in zip(read(draw=draw), read(workers=2, together=together, draw=draw), strict=True):
        (wanted,) = own
        assert (batch.ids, batch.positions, batch.texts) == (wanted.ids, wanted.positions, wanted.texts)
        assert torch.equal(batch.x, wanted.x)
        assert torch.equal(batch.y, wanted.y)
        assert batch.before is None
        assert batch.features is None
        assert all(torch.equal(batch.drawn[name], x) for name, x in wanted.drawn.items())


class Late(InMemory):
    """Images of which one, of the second step of ``read``, is damaged."""

    def image(self, i: int) -> Pixels:
        if i == read()[1][0].ids[-1]:
            raise UserError("damaged")
        return super().image(i)


def test_bad_image_ends_the_run_at_its_own_step() -> None:
    assert read()[1][0].ids[-1] not in read()[0][0].ids
    with contextlib.closing(batches(like(Late), PART, **SETTINGS, workers=1, together=4)) as steps:
        assert torch.equal(next(steps)[0].x, read()[0][0].x)
        with pytest.raises(UserError, match="damaged"):
            next(steps)


@pytest.mark.parametrize("count", [0, 3, 40_000])
def test_parcel_gives_back_its_tensors_aligned_and_apart_from_those_it_was_given(count: int) -> None:
    given = {
        "a": torch.arange(count, dtype=torch.float32),
        "b": torch.tensor([[True]]),
        "c": torch.tensor(2.5).double(),
    }
    sent = ForkingPickler.dumps(Parcel(given))
    found = pickle.loads(sent).tensors()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in given.items())
    assert all(x.data_ptr() % ALIGNED == 0 for x in found.values() if x.numel())
    assert (found["c"].mul_(2), given["c"])[1] == 2.5


def test_dead_worker_ends_the_run_with_advice() -> None:
    with pytest.raises(RunError, match=r"died.*training.workers"):
        read(like(Deadly), workers=1)


def test_workers_leave_signals_to_the_trainer() -> None:
    ((batch,),) = read(like(Signals), workers=1, stop=1)
    assert (batch.x == 2).all()
    ((batch,),) = read(like(Signals), stop=1)
    assert (batch.x == 0).all()


ENDS = """
import builtins, os, sys
import numpy as np
from udit.data.sources import InMemory
from udit.data.batches import batches
from udit.errors import UserError
class Flaky(InMemory):
    def image(self, i):
        if i == 7:
            raise UserError("flaky")
        return super().image(i)
source = Flaky(np.zeros((8, 1, 2, 2), np.uint8), np.zeros(8), list("abcdefgh"))
part = np.zeros(8, int)
for end in ("reading", "error"):
    if process := os.fork():
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\\n")
    else:
        break
else:
    raise SystemExit
builtins.stream = batches(source, part, seed=0, start=0, stop=10**6, global_batch=8, workers=2)
next(builtins.stream)
if end == "error":
    builtins.stream = batches(source, part + 7, seed=0, start=0, stop=9, global_batch=8, workers=2)
    try:
        next(builtins.stream)
    except UserError as error:
        builtins.kept = error  # and with it the traceback's frames
raise SystemExit(3)
"""


@pytest.mark.slow
def test_process_ends_with_workers_still_reading() -> None:
    """While they read, and after an error that is kept; each is a fork, to import torch once."""
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.split() == ["3", "3"], ended.stderr


KILLED = """
import multiprocessing, os, signal, sys
import numpy as np
from udit.data.sources import InMemory
from udit.data.batches import batches
source = InMemory(np.zeros((8, 1, 64, 64), np.uint8), np.zeros(8), list("abcdefgh"))
stream = batches(source, np.zeros(8, int), seed=0, start=0, stop=10**6, global_batch=8, workers=2)
next(stream)
sys.stdout.write(" ".join(str(worker.pid) for worker in multiprocessing.active_children()))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_trainer_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pids"  # no pipe: workers that stay would keep it open
    with told.open("w") as stream:
        ended = subprocess.run([sys.executable, "-c", KILLED], stdout=stream, timeout=60, check=False)
    workers = told.read_text().split()
    assert (ended.returncode, len(workers)) == (-signal.SIGKILL, 2)
    latest = time.monotonic() + 20
    while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < latest, left
        time.sleep(0.1)


FLAT = """
import multiprocessing, os, sys
from pathlib import Path
import numpy as np
import udit.data.encoded
from udit.data.config import FolderData
from udit.data.batches import batches

COUNT, BATCH, EPOCHS = 200_000, 500, 5
root = Path(sys.argv[1])
for i in range(10):
    (root / f"class {i}").mkdir()
    for k in range(COUNT // 10):
        os.close(os.open(f"{root}/class {i}/picture number {k:06d}.png", os.O_CREAT))
udit.data.encoded.decode = lambda path, size, channels, *_: np.zeros((channels, *size), np.uint8)
source = FolderData(root=root, size=2, channels=1).build()

def private(process):
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

stop = EPOCHS * COUNT // BATCH
stream = batches(source, np.arange(COUNT), seed=0, start=0, stop=stop, global_batch=BATCH, flip=True, workers=2)
for step, _ in enumerate(stream, 1):
    if step * BATCH % COUNT == 0:
        workers = [worker.pid for worker in multiprocessing.active_children()]
        assert len(workers) == 2
        sys.stdout.write(f"{sum(map(private, [os.getpid(), *workers]))}\\n")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_trainer_and_workers_is_flat_over_epochs_of_200_000_paths(tmp_path: Path) -> None:
    words = [sys.executable, "-c", FLAT, str(tmp_path)]
    # a freed permutation is returned to the system at once; otherwise that depends on the heap's layout
    given = environment(MALLOC_MMAP_THRESHOLD_="131072")
    ended = subprocess.run(words, env=given, capture_output=True, text=True, check=True)
    _, _, *epochs = map(int, ended.stdout.split())  # the first two warm up
    assert len(epochs) == 3
    # only pages written to: whether those of a library's file are private depends on other processes
    told = f"private dirty memory, kB, after each epoch: {epochs}"
    assert all(after < 1.01 * before for before, after in itertools.pairwise(epochs)), told
