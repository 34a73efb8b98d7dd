"""Checkpoints that all ranks write together, each the part of the state that it has (FSDP).

Rank 0 makes a temporary folder, every rank writes one file into it through ``torch.distributed.checkpoint`` and hashes
it, and rank 0 seals the manifest and renames the folder: a checkpoint is whole or not there. Of several ranks the files
are written while the training goes on, from a copy of the state on the CPU and over a process group of their own.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor

from udit import sharding
from udit.checkpoint import CheckpointStore, Sharded
from udit.dist import World
from udit.errors import RunError
from udit.files import file_facts, sync

Facts = Callable[[], dict[str, Any]]
NO_FILE = -1
"""In place of a size: the rank has no part of anything, and wrote none."""


@dataclass
class _Writing:
    """A checkpoint that is being written."""

    step: int
    own: Future[Tensor]
    """Size and sha256 of this rank's file, int64 [33]."""
    whole: AbstractContextManager[Sharded] | None
    """The folder; rank 0 alone makes and completes it."""
    folder: Sharded | None


class ShardedSaves:
    """Writes the checkpoints of a run whose state is split; all ranks call all of its methods at the same steps."""

    def __init__(self, store: CheckpointStore, world: World, timeout: float) -> None:
        """Makes the process group that writing uses, so that its messages never meet those of the training."""
        self.store, self.world = store, world
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: _Writing | None = None

    def begin(self, step: int, state: sharding.State, facts: Facts, spare: int | None) -> None:
        """Copies the state and begins to write it; waits for the checkpoint before it, if that is not complete.

        Args:
            step: optimiser steps done.
            state: what the checkpoint holds; may change afterwards.
            facts: further entries of the manifest; called on rank 0 alone.
            spare: as ``CheckpointStore.save``.

        Raises:
            RunError: this checkpoint or the one before it could not be written.
        """
        self.finish()
        token = f"{self.world.agree(secrets.randbits(48)):012x}"
        if self.world.agree(int(self.store.path(step).exists())):
            return
        opened = self.world.on_main(self._open, step, token, facts, spare)
        whole, folder = opened if opened is not None else (None, None)
        place = self.store.shards_at(step, token)
        options: dict[str, Any] = {"storage_writer": sharding.writer_of(place)}
        if self._group is None:
            written: Future[Any] = self._thread.submit(dcp.save, sharding.flat(state), no_dist=True, **options)
            wait([written])
        else:
            group = cast("dist.ProcessGroup", self._group)
            found = dcp.async_save(sharding.flat(state), process_group=group, **options)
            assert isinstance(found, Future), "the writer stages before it returns"
            written = found
        own = self._thread.submit(_digest, written, place, self.world.rank)
        self._writing = _Writing(step, own, whole, folder)

    def poll(self) -> None:
        """Completes the checkpoint that is being written if every rank is done with its file; between steps.

        Raises:
            RunError: it could not be written.
        """
        if self._writing is not None and self.world.sum([self._writing.own.done()])[0] == self.world.size:
            self.finish()

    def finish(self) -> None:
        """Waits until the checkpoint that is being written is complete.

        Raises:
            RunError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            facts = self.world.everywhere(self._own, writing)
        except BaseException as error:
            self._leave(writing, error)
            raise
        every = self.world.gather(facts)
        self.world.on_main(self._seal, writing, every)

    def close(self) -> None:
        """Ends the thread. A checkpoint that is not complete, because the run cannot go on, is removed."""
        writing, self._writing = self._writing, None
        self._thread.shutdown(wait=False)
        if writing is not None:
            self._leave(writing, RunError("it is not complete"))

    def _open(
        self, step: int, token: str, facts: Facts, spare: int | None
    ) -> tuple[AbstractContextManager[Sharded], Sharded]:
        whole = self.store.sharded(step, token, facts(), spare)
        try:
            return whole, whole.__enter__()
        except OSError as error:
            raise self.store.refused(step, error) from None

    def _own(self, writing: _Writing) -> Tensor:
        try:
            return writing.own.result()
        except (OSError, SafetensorError, dcp.CheckpointException) as error:
            raise self.store.refused(writing.step, _cause_of(error)) from None

    def _seal(self, writing: _Writing, facts: Tensor) -> None:
        """Completes the folder.

        Args:
            writing: rank 0's.
            facts: int64 [ranks, 33], of ``_digest``.
        """
        assert writing.whole is not None and writing.folder is not None
        for rank, (size, *digest) in enumerate(facts.tolist()):
            if size != NO_FILE:
                writing.folder.files[sharding.file_of(rank)] = {"bytes": size, "sha256": bytes(digest).hex()}
        try:
            writing.whole.__exit__(None, None, None)
        except OSError as error:
            raise self.store.refused(writing.step, error) from None

    def _leave(self, writing: _Writing, error: BaseException) -> None:
        if writing.whole is not None:
            with contextlib.suppress(type(error)):
                writing.whole.__exit__(type(error), error, None)


def _digest(written: Future[Any], folder: Path, rank: int) -> Tensor:
    """Size and sha256 of a rank's file once it is on disk, int64 [33]."""
    written.result()
    path = folder / sharding.file_of(rank)
    if not path.is_file():
        return torch.tensor([NO_FILE] + [0] * 32)
    sync(path)
    facts = file_facts(path)
    return torch.tensor([facts.bytes, *bytes.fromhex(facts.sha256)])


def _cause_of(error: Exception | dcp.CheckpointException) -> Exception:
    """The error of the disk within one of ``torch.distributed.checkpoint``; the first rank's that has one."""
    if not isinstance(error, dcp.CheckpointException):
        return error
    causes = [failure[0] for _, failure in sorted(error.failures.items())]
    return next((cause for cause in causes if isinstance(cause, OSError)), RunError(str(causes[0])))
