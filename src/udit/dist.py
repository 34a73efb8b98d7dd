"""Ranks, reductions and devices; a single process has no process group, and its reductions return their input."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from udit.errors import PeerError, RunError, UserError

P = ParamSpec("P")
T = TypeVar("T")

_GLOO = ("gloo", "Application timeout caused pair closure")
"""Parts of gloo's error when a peer is lost; the second is that of an operation after another one timed out."""


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    @property
    def where(self) -> str:
        """Its device in words, e.g. "cpu with 2 threads on each of 4 ranks"."""
        threads = torch.get_num_threads()
        names = {"cpu": f"cpu with {threads} thread{'s' * (threads > 1)}"}
        if self.device.type == "cuda":
            names["cuda"] = torch.cuda.get_device_name(self.device)
        ranks = f" on each of {self.size} ranks" if self.size > 1 else ""
        return names.get(self.device.type, str(self.device)) + ranks

    def sum(self, values: Iterable[float]) -> list[float]:
        """Element-wise sum over ranks, in float64."""
        tensor = torch.tensor(list(values), dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor.tolist()

    def summed(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks, in the place of ``values``; on a GPU the host does not wait for it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Stacks a CPU tensor [n] of every rank to [size, n]."""
        if self.size == 1:
            return values[None]
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with rank 0's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def agree(self, value: int) -> int:
        """Rank 0's value, on every rank."""
        tensor = torch.tensor(value)
        self.broadcast([tensor])
        return int(tensor)

    def on_main(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Calls ``action`` on rank 0 alone and returns its result there, None on the other ranks.

        Every rank takes part, so that an error on rank 0 is an error everywhere and no rank waits for one that is gone.

        Raises:
            UserError, RunError, OSError: on rank 0, what the action raised.
            PeerError: on the other ranks, then.
        """
        result, error = None, None
        if self.is_main:
            try:
                result = action(*args, **kwargs)
            except (UserError, RunError, OSError) as caught:
                error = caught
        if self.agree(int(error is not None)):
            raise error or PeerError("rank 0 gave up; its message says why")
        return result

    def everywhere(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls ``action`` on every rank and returns this one's result; an error of one rank is an error of all.

        Raises:
            UserError, RunError, OSError: on the first rank that has one, what the action raised.
            PeerError: on the other ranks, then.
        """
        result, error = None, None
        try:
            result = action(*args, **kwargs)
        except (UserError, RunError, OSError) as caught:
            error = caught
        failed = self.gather(torch.tensor([int(error is not None)])).flatten().tolist()
        if any(failed):
            first = failed.index(1)
            raise error if error is not None and first == self.rank else PeerError(f"rank {first} gave up and says why")
        return result  # type: ignore[return-value]

    def barrier(self) -> None:
        """Waits for every rank."""
        self.sum([0.0])

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Context in which a peer that dies or no longer answers is a RunError.

        Raises:
            RunError: in place of torch's error.
        """
        try:
            yield
        except RuntimeError as error:
            ours = isinstance(error, dist.DistError) or any(word in str(error) for word in _GLOO)
            if isinstance(error, RunError) or not ours:
                raise
            detail = " ".join(str(error).split("] ", 1)[-1].split(". ", 1)[0].split())[:120]
            raise RunError(
                f"rank {self.rank} of {self.size} lost a peer ({detail}); start all of them again with the same command"
            ) from None

    def close(self) -> None:
        """Leaves the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def launched() -> int:
    """Number of processes that a launcher has started; 1 without a launcher.

    Raises:
        UserError: WORLD_SIZE is no number.
    """
    return _environment("WORLD_SIZE", 1)


def launched_here() -> int:
    """Number of a launcher's processes on this machine; 1 without a launcher.

    Raises:
        UserError: LOCAL_WORLD_SIZE or WORLD_SIZE is no number.
    """
    return max(1, _environment("LOCAL_WORLD_SIZE", launched()))


def start(device: str = "auto", timeout: float = 600) -> World:
    """Joins the peers that ``torchrun`` or ``accelerate launch`` started, or is the only process.

    A process that has joined them already stays in their group.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        timeout: seconds after which a peer that does not answer is an error.

    Raises:
        UserError: no such device, or WORLD_SIZE is set but the peers cannot be met.
    """
    size = launched()
    local = _environment("LOCAL_RANK", 0)
    where = find_device(device, local)
    if size == 1:
        return World(device=where)
    if size < 1:
        raise UserError(f"WORLD_SIZE is {size}; it counts processes, unset it for one")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start with "
            f"`torchrun --nproc_per_node={size} -m udit ...`, or unset WORLD_SIZE for one process"
        )
    rank = _environment("RANK", 0)
    if not 0 <= rank < size:
        raise UserError(f"RANK is {rank} and WORLD_SIZE is {size}; ranks count from 0 to {size - 1}")
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), where)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    try:
        if rank:
            _await_main(timeout)
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError, OSError, OverflowError) as error:
        detail = (getattr(error, "strerror", None) or str(error)).split("\n", 1)[0][:160]
        where_to = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {rank} of {size} met no peers at {where_to} within {timeout:g} s ({detail}); start all of them with "
            "torchrun, or unset WORLD_SIZE for one process"
        ) from None
    return World(rank, size, where)


@contextlib.contextmanager
def joined(device: str = "auto", timeout: float = 600) -> Iterator[World]:
    """The world of a job: as ``start``, and left again once every rank is done. A group that is there already stays.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        timeout: seconds after which a silent peer is an error.

    Raises:
        UserError: as ``start``.
    """
    own = not dist.is_initialized()
    world = start(device, timeout)
    yield world
    if own:
        world.barrier()
        world.close()


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory, for the next tensors.

    By default glibc returns large blocks to the system and requests the same pages again, zeroed, at every step, which
    takes up to a third of a training step on a CPU. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # M_MMAP_MAX: no separate mappings; M_TRIM_THRESHOLD: never return memory
        for option, value in ((-4, 0), (-1, -1)):
            mallopt(option, value)


def _await_main(timeout: float) -> None:
    """Waits for rank 0's store to answer; torch's own waiting prints C++ stack traces."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(address, max(1.0, deadline - time.monotonic())).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} is {text!r}; the launcher sets it to a whole number, unset it otherwise") from None


def find_device(name: str, local_rank: int) -> torch.device:
    """The device of a name; a CUDA GPU becomes the current one.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        local_rank: among the ranks of this machine; which GPU ``cuda`` means.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device is {name!r}; take auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device is {name!r} and this torch finds no CUDA GPU; take cpu or auto")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(f"device cuda:{index} is one of {torch.cuda.device_count()} GPUs here; they count from 0")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device is 'mps' and this machine has none; take cpu or auto")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device is {name!r}; take auto, cpu, cuda, cuda:N or mps")
    return device
