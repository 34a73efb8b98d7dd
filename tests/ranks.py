"""Ranks as forked processes, for tests of several: they start at once, as they import nothing, and can be killed."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
from torch.distributed.checkpoint import CheckpointException

from runs import RECIPE, free_port
from udit.cli import main
from udit.dist import World

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("runs", "udit.training.trainer", "udit.training.events", "udit.training.saving", "udit.cli.train"),
        *("torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo", "matplotlib.figure"),
    ]
)
FOR_RANKS = ["training.parallel=fsdp", "training.steps=9", "training.save_every=3", "model.depths=[1]"]
"""Overrides of the tiny recipe: a batch of 12, which splits over 1, 2, 3 and 4 ranks."""


PATIENCE = 400
"""Seconds that a run may take; ten are usual."""


# ---- functions -------------------------------------------------------------------------------------------------------


def on_ranks(size: int, function: Callable[..., Any], *args: Any, seconds: float = 120) -> list[Any]:
    """Calls ``function(world, *args)`` on some ranks of gloo; what each returned.

    Args:
        size: number of ranks.
        function: of a module that a new process can import.
        args: whatever can be sent to it, as can be what it returns.
        seconds: the most it takes.
    """
    queue, port = FORKS.SimpleQueue(), free_port()
    ranks = [
        FORKS.Process(target=_call, args=(queue, rank, size, port, function, args), daemon=True) for rank in range(size)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    while len(found) < size:
        assert time.monotonic() < deadline, f"ranks {sorted(set(range(size)) - found.keys())} have not answered"
        if queue.empty():
            time.sleep(0.01)
            continue
        rank, failed, value = queue.get()
        assert not failed, f"rank {rank} of {size}:\n{value}"
        found[rank] = value
    for process in ranks:
        process.join()
    return [found[rank] for rank in range(size)]


def _call(queue: Any, rank: int, size: int, port: str, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": str(size)}
    try:
        td.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=60))
        value = function(World(rank, size), *args)
        td.barrier()
        queue.put((rank, False, value))
        td.destroy_process_group()
    except (Exception, CheckpointException):
        queue.put((rank, True, traceback.format_exc()))
        raise


# ---- trainings -------------------------------------------------------------------------------------------------------


class Ranks:
    """The small run on some ranks."""

    def __init__(self, out: Path, overrides: list[str], size: int, kill: tuple[int, int] | None = None) -> None:
        """Starts it.

        Args:
            out: the run folder; outputs of rank n go to ``out.n.log`` beside it.
            overrides: of the tiny recipe, with those of ``FOR_RANKS``.
            size: number of ranks.
            kill: a rank, and the number of the write (``Points``) at which it kills itself.
        """
        self.logs = [out.with_name(f"{out.name}.{rank}.log") for rank in range(size)]
        words = ["train", RECIPE, "--no-progress", f"out={out}", *FOR_RANKS, *overrides]
        group = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.processes: list[ForkServerProcess] = []
        for rank, log in enumerate(self.logs):
            own = (group if size > 1 else {}) | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            at = kill[1] if kill and kill[0] == rank else None
            self.processes.append(FORKS.Process(target=_train, args=(words, own, log, out, at), daemon=True))
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """The exit codes, negative ones of signals; a run that stands still tells where."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
            assert process.exitcode is not None, f"still there after {seconds} s: {self.told()}"
        return [int(process.exitcode or 0) for process in self.processes]

    def done(self) -> bool:
        """Whether a rank has ended."""
        return any(process.exitcode is not None for process in self.processes)

    def kill(self, rank: int | None = None) -> None:
        """SIGKILLs a rank, or all."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            process.kill()

    def told(self) -> list[str]:
        """What each rank said."""
        return [log.read_text(encoding="utf-8") for log in self.logs]


def _train(words: list[str], variables: dict[str, str], log: Path, out: Path, kill_at: int | None) -> None:
    torch.set_num_threads(1)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ |= variables
    stream = log.open("w")
    for number in (1, 2):
        os.dup2(stream.fileno(), number)
    sys.stdout = sys.stderr = stream
    faulthandler.dump_traceback_later(PATIENCE - 60, file=stream)
    points = Points(out / "checkpoints", kill_at)
    try:
        main(words)
    finally:
        log.with_suffix(".points").write_text("\n".join(points.seen))
        stream.flush()


class Points:
    """Counts what a process does to the files of checkpoints, and kills it at one of these points.

    They are: making, opening, renaming and removing files and folders (Python's audit events), half of each write of a
    shard or a manifest, and each fsync.
    """

    EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.folder, self.kill_at = str(folder), kill_at
        self.seen: list[str] = []
        sys.addaudithook(self._audit)
        from torch.distributed.checkpoint.filesystem import FileSystem

        points, create, sync = self, FileSystem.create_stream, os.fsync

        def create_torn(self: Any, path: Any, mode: str) -> Any:
            return _torn(create(self, path, mode), points, str(path))

        def fsync(descriptor: int) -> None:
            path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
            points.at("fsync", path)
            sync(descriptor)

        FileSystem.create_stream = create_torn  # type: ignore[method-assign]
        os.fsync = fsync

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[1], str) and args[1].startswith("r"):
            return
        if event in self.EVENTS:
            self.at(event, str(args[0]))

    def at(self, what: str, path: str) -> None:
        """One point; those outside of the folder do not count."""
        if not path.startswith(self.folder):
            return
        self.seen.append(f"{what} {path.removeprefix(self.folder)}")
        if len(self.seen) - 1 == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _torn(context: Any, points: Points, path: str) -> Any:
    """A stream of torch's file system whose writes have a point in their middle."""

    class Torn:
        def __enter__(self) -> Any:
            self.stream = context.__enter__()
            return self

        def __exit__(self, *raised: Any) -> Any:
            return context.__exit__(*raised)

        def write(self, data: bytes) -> int:
            half = len(data) // 2
            self.stream.write(data[:half])
            self.stream.flush()
            points.at("write", path)
            return half + int(self.stream.write(data[half:]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

    return Torn()
