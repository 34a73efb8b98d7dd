"""Checkpoints that are either complete or absent.

A checkpoint is a folder ``step-00001000``: safetensors files and a manifest with their sizes, sha256 and, last, its own
digest. It is written to a temporary sibling, every file and the folder are fsynced, then it is renamed and the parent
is fsynced; nothing is ever overwritten. Resuming takes the newest one that verifies; a damaged one is named, renamed
and skipped.
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from udit.errors import RunError, UserError
from udit.files import file_sha256, seal, sweep, sync, temporary_sibling, unseal, whole_folder

SCHEMA = 1
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

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of ``model``, ``ema``, ``optim`` or ``posthoc``, on the CPU."""
        return load_file(self.path / f"{name}.safetensors")


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
                text = seal({"schema": SCHEMA, "step": step, **facts, "files": files})
                (temporary / MANIFEST).write_text(text, encoding="utf-8")
        except (OSError, SafetensorError) as error:
            newest = max(self.steps(), default=None)
            kept = f"step {newest} is intact" if newest is not None else "there is none before it"
            raise RunError(
                f"cannot write checkpoint {final}: {_cause(error)}; {kept}; fix that and run the same command again"
            ) from None
        self._prune(spare)
        return final

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
        if manifest["schema"] != SCHEMA:
            raise UserError(
                f"{path} was written in schema {manifest['schema']} and this udit reads {SCHEMA}; use the udit that "
                "wrote it, or start a new run in another folder"
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


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({Path(error.filename).name})" if error.filename else error.strerror
    return " ".join(str(error).split())
