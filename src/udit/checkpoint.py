"""Checkpoints that are either complete or absent.

A checkpoint is a folder ``step-00001000``: safetensors files and a manifest with their sizes, sha256 and, last, its own
digest. It is written to a temporary sibling, every file and the folder are fsynced, then it is renamed and the parent
is fsynced; nothing is ever overwritten. Resuming takes the newest one that verifies; a damaged one is named, renamed
and skipped.

Where weights are split over ranks (FSDP), each rank has written its own file, which holds its parts of everything
(``sharding``); the manifest says so by its schema.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from udit import sharding
from udit.dist import World
from udit.errors import RunError, UserError
from udit.files import TEMPORARY, file_sha256, seal, sweep, sync, temporary_sibling, unseal, whole_folder

SCHEMA = 1
"""A file for each of model, ema, optim and posthoc."""
SHARDED = 2
"""A file for each rank."""
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.manifest["step"])

    @property
    def sharded(self) -> bool:
        """Whether there is a file for each rank."""
        return bool(self.manifest["schema"] == SHARDED)

    @property
    def parts(self) -> list[str]:
        """What ``tensors`` takes: ``model``, ``ema``, ``optim`` and so on."""
        if self.sharded:
            return sorted({key.partition("/")[0] for key in sharding.names_in(self.path)})
        return [Path(file).stem for file in self.manifest["files"]]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The whole tensors of ``model``, ``ema``, ``optim`` or ``posthoc``, on the CPU."""
        if not self.sharded:
            return load_file(self.path / f"{name}.safetensors")
        here = {key: facts for key, facts in sharding.names_in(self.path).items() if key.startswith(f"{name}/")}
        whole = {key: torch.empty(shape, dtype=dtype) for key, (shape, dtype) in here.items()}
        sharding.read_into(self.path, whole)
        return {key.removeprefix(f"{name}/"): tensor for key, tensor in whole.items()}

    def names(self, name: str) -> set[str]:
        """The tensors that ``tensors(name)`` has."""
        if self.sharded:
            found = sharding.names_in(self.path)
            return {key.removeprefix(f"{name}/") for key in found if key.startswith(f"{name}/")}
        with safe_open(self.path / f"{name}.safetensors", framework="pt") as file:
            return set(file.keys())

    def read_into(self, state: sharding.State, world: World) -> None:
        """Fills tensors, whole or split over the ranks, all of which call it; a rank reads its own parts alone.

        Args:
            state: {"model": {name: tensor}, ...}, changed in place.
            world: the ranks.

        Raises:
            RuntimeError: a tensor is missing or has another shape.
        """
        if self.sharded:
            sharding.read_into(self.path, sharding.flat(state), world)
            return
        for part, targets in state.items():
            with safe_open(self.path / f"{part}.safetensors", framework="pt") as file:
                for name, target in targets.items():
                    found = file.get_tensor(name)
                    if found.shape != target.shape:
                        raise RuntimeError(f"{name} has shape {list(found.shape)}, not {list(target.shape)}")
                    sharding.put(target, found)


class CheckpointStore:
    """The checkpoints of one run. One process writes; it holds the run's lock."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self, step: int, tensors: dict[str, dict[str, Tensor]], facts: dict[str, Any], spare: int | None = None
    ) -> Path:
        """Writes one checkpoint, then removes the oldest beyond ``keep``.

        Args:
            step: optimiser steps done.
            tensors: {"model": {name: tensor}, ...}.
            facts: further entries of the manifest.
            spare: the newest checkpoint of at most this step is kept too.

        Raises:
            RunError: it could not be written; earlier checkpoints are intact.
        """
        final = self.path(step)
        if final.exists():
            return final
        try:
            with whole_folder(final) as temporary:
                files = {}
                for name, values in tensors.items():
                    file = temporary / f"{name}.safetensors"
                    write_tensors(values, file)
                    files[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
                _write_manifest(temporary, {"schema": SCHEMA, "step": step, **facts, "files": files})
        except (OSError, SafetensorError) as error:
            raise self.refused(step, error) from None
        self._prune(spare)
        return final

    @contextlib.contextmanager
    def sharded(self, step: int, token: str, facts: dict[str, Any], spare: int | None = None) -> Iterator[Sharded]:
        """A checkpoint whose files all ranks write, complete once the context is left; after an error it is removed.

        Args:
            step: optimiser steps done.
            token: part of the temporary folder's name (``shards_at``), new at every save: a rank of a run that was
                started again must not write into a folder of the new one.
            facts: further entries of the manifest.
            spare: as ``save``.

        Yields:
            Where the files go; what is said of them there goes into the manifest.

        Raises:
            OSError: the disk refuses it, or a file is not there.
        """
        with whole_folder(self.path(step), temporary=self.shards_at(step, token)) as temporary:
            found = Sharded(temporary, {})
            yield found
            for name, told in found.files.items():
                if (size := (temporary / name).stat().st_size) != told["bytes"]:
                    raise OSError(f"{name} has {size} of {told['bytes']} bytes")
            _write_manifest(temporary, {"schema": SHARDED, "step": step, **facts, "files": found.files})
        self._prune(spare)

    def shards_at(self, step: int, token: str) -> Path:
        """The temporary folder of ``sharded``."""
        return self.folder / f"{TEMPORARY}{token}-{self.path(step).name}"

    def refused(self, step: int, error: Exception) -> RunError:
        """Why a checkpoint could not be written, in one line."""
        newest = max(self.steps(), default=None)
        kept = f"step {newest} is intact" if newest is not None else "there is none before it"
        return RunError(
            f"cannot write checkpoint {self.path(step)}: {_cause(error)}; {kept}; fix that and run the same command "
            "again"
        )

    def newest(self, aside: bool = True) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None.

        Args:
            aside: rename damaged ones to ``step-...damaged``; off for readers that do not hold the run's lock.
        """
        for step in sorted(self.steps(), reverse=True):
            path = self.path(step)
            try:
                return Checkpoint(path, verify(path))
            except DamagedError as error:
                target = self._set_aside(path) if aside else None
                log.warning(
                    "checkpoint %s is damaged (%s); %s",
                    path,
                    error,
                    f"set aside as {target.name}" if target else "skipped",
                )
        return None

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint, whether it is there or not."""
        return self.folder / f"step-{step:08d}"

    def opened(self, step: int) -> Checkpoint:
        """The checkpoint of a step that another rank has verified.

        Raises:
            RunError: it is not here.
        """
        path = self.path(step)
        try:
            return Checkpoint(path, unseal((path / MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise RunError(
                f"checkpoint {path} cannot be read here ({_cause(error)}); the run folder must be on a file system "
                "that all ranks see"
            ) from None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of one step.

        Raises:
            DamagedError: it is not there or does not verify.
        """
        path = self.path(step)
        return Checkpoint(path, verify(path))

    def steps(self) -> list[int]:
        """Steps of all checkpoints, verified or not."""
        if not self.folder.is_dir():
            return []
        return [int(match[1]) for entry in self.folder.iterdir() if (match := _NAME.fullmatch(entry.name))]

    def sweep(self) -> None:
        """Removes what a save or a removal that was killed has left."""
        sweep(self.folder)

    def _prune(self, spare: int | None) -> None:
        steps = sorted(self.steps(), reverse=True)
        spared = next((step for step in steps if spare is not None and step <= spare), None)
        for step in steps[self.keep :]:
            if step == spared:
                continue
            path = self.path(step)
            doomed = temporary_sibling(path.with_name(f"old-{path.name}"))
            try:
                path.rename(doomed)  # a removal that is interrupted must not look like a damaged checkpoint
                shutil.rmtree(doomed)
            except OSError as error:
                log.warning("cannot remove old checkpoint %s: %s", path, _cause(error))

    def _set_aside(self, path: Path) -> Path:
        target = path.with_name(f"{path.name}.damaged")
        count = 1
        while target.exists():
            count += 1
            target = path.with_name(f"{path.name}.damaged-{count}")
        path.rename(target)
        sync(self.folder)
        return target


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the mode that the umask says.

    Raises:
        OSError, SafetensorError: the disk refuses it.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(mode)  # safetensors makes it readable by its owner alone, whatever the umask


@dataclass(frozen=True)
class Sharded:
    """A checkpoint that ranks are writing."""

    folder: Path
    files: dict[str, dict[str, Any]]
    """Size and sha256 of each file, by name."""


class DamagedError(ValueError):
    """A checkpoint that is torn or altered; the text says where."""


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint folder, after every byte of it has been checked.

    Raises:
        DamagedError: something is missing, torn or altered.
        UserError: it is complete and has another schema.
    """
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        try:
            manifest = unseal(text)
        except ValueError as error:
            raise DamagedError(f"{MANIFEST} is torn ({error})") from None
        if manifest["schema"] not in (SCHEMA, SHARDED):
            raise UserError(
                f"{path} was written in schema {manifest['schema']} and this udit reads {SCHEMA} and {SHARDED}; use "
                "the udit that wrote it, or start a new run in another folder"
            )
        for name, facts in manifest["files"].items():
            file = path / name
            size = file.stat().st_size
            if size != facts["bytes"]:
                raise DamagedError(f"{name} has {size} of {facts['bytes']} bytes")
            if file_sha256(file) != facts["sha256"]:
                raise DamagedError(f"{name} does not match its sha256")
    except OSError as error:
        raise DamagedError(_cause(error)) from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, DamagedError | UserError):
            raise
        raise DamagedError(f"{MANIFEST} is torn") from None
    return manifest


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(seal(manifest), encoding="utf-8")


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({Path(error.filename).name})" if error.filename else error.strerror
    return " ".join(str(error).split())
