"""The run folder: its lock, its record of the configuration, and its log."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from udit.data.sources import Source
from udit.errors import RunError, UserError
from udit.files import check_writable, write_text
from udit.run.config import Run, changed_keys
from udit.run.recipes import read_yaml, to_yaml
from udit.spec.base import parse, value_at

log = logging.getLogger(__name__)
NAMES = "pictures.txt"
"""The names of the images that a run started with, one JSON string per line."""


class RunLock:
    """An flock on ``run.lock``: keeps a second trainer out, and is freed when its process ends, however that ends."""

    def __init__(self, folder: Path) -> None:
        path = folder / "run.lock"
        self._stream: TextIO = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.seek(0)
            holder = self._stream.read().strip()
            self._stream.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise UserError(
                f"run folder {folder} is in use by {holder or 'another process'}; wait for it, or take another out=DIR"
            ) from None
        # A forked reading worker shares the open file, and so the lock: it may outlive a killed trainer by seconds.
        os.register_at_fork(after_in_child=self._stream.close)
        self._stream.truncate(0)
        self._stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._stream.flush()

    def release(self) -> None:
        """Frees the lock."""
        self._stream.close()


def open_folder(run: Run, bytes_needed: int) -> RunLock:
    """Makes the run folder, checks that it can be written, and locks it.

    Args:
        run: whose ``out`` is the folder.
        bytes_needed: of one checkpoint.

    Raises:
        UserError: the folder cannot be written, is in use, or the disk is too full for a checkpoint.
    """
    folder = run.out
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "samples").mkdir(exist_ok=True)
        check_writable(folder)
        lock = RunLock(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to run folder {folder}: {error.strerror}; fix that, or give another one with out=DIR"
        ) from None
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if free < bytes_needed:
        lock.release()
        raise UserError(
            f"a checkpoint of this run takes {_megabytes(bytes_needed)} and {folder} has {_megabytes(free)} free; make "
            "room, or take another out=DIR"
        )
    return lock


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def read_run(folder: Path) -> dict[str, Any] | None:
    """The plain values of a folder's ``run.yaml``, or None."""
    path = folder / "run.yaml"
    return read_yaml(path) if path.is_file() else None


def check_resumable(old: dict[str, Any], new: dict[str, Any], where: Path) -> None:
    """Refuses a run with changed keys that may not change on resuming.

    Keys that an older version did not write count as their defaults.

    Raises:
        UserError: names the first such key with both values.
    """
    with contextlib.suppress(UserError):  # of a version with keys that are gone: compared as it is
        old = parse(Run, old).plain()
    changed = changed_keys(old, new)
    if changed:
        key = changed[0]
        before, after = (value_at(values, key) for values in (old, new))
        more = f" (and {len(changed) - 1} more: {', '.join(changed[1:5])})" if len(changed) > 1 else ""
        raise UserError(
            f"{key} was {before!r} in {where} and is {after!r} now{more}; a run cannot resume with "
            "that: put it back, or start a new run with out=DIR"
        )


def has_trained(folder: Path) -> bool:
    """Whether a run folder holds weights: a checkpoint, a damaged one too, a snapshot of an average or a model."""
    weights = (folder / "checkpoints").glob("step-*"), (folder / "posthoc").glob("step-*"), folder.glob("model")
    return any(any(found) for found in weights)


def clear_untrained(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Lets a run take the folder of one that left no weights; sample grids of other settings are removed.

    Its log is cut back as that of every run, by ``MetricsLog``.
    """
    changed = changed_keys(old, new)
    if not changed:
        return
    for grid in (folder / "samples").glob("step-*.png"):
        grid.unlink()
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    log.info("%s holds no weights yet and takes the new %s%s", folder, ", ".join(changed[:3]), more)


def write_names(folder: Path, source: Source) -> None:
    """Lists the images that a run starts with, so that a change can be named when it is resumed.

    Raises:
        RunError: the list could not be written.
    """
    replace_text(folder / NAMES, "".join(f"{json.dumps(name)}\n" for name in source.names))


def what_changed(folder: Path, source: Source) -> str:
    """How the images differ from those of ``write_names``, in words."""
    try:
        before = {json.loads(line) for line in (folder / NAMES).read_text(encoding="ascii").splitlines()}
    except (OSError, ValueError, TypeError):  # TypeError: a line that holds a list
        return "images were added, removed or altered"
    now = set(source.names)
    changes = {"added": now - before, "removed": before - now}
    told = [f"{len(names)} {how}, e.g. {min(names)!r}" for how, names in changes.items() if names]
    return ", ".join(told) or "the same names, but images or labels were altered"


def write_run(run: Run, folder: Path | None = None) -> None:
    """Writes ``run.yaml`` into the run's folder or another one, whole or not at all."""
    replace_text((folder or run.out) / "run.yaml", to_yaml(run.plain()))


def replace_text(path: Path, text: str) -> None:
    """Writes a text file of the run, whole and durable.

    Raises:
        RunError: it could not be written; the file before it is intact.
    """
    try:
        write_text(path, text)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; fix that and run the same command again") from None


class MetricsLog:
    """``metrics.jsonl``: one line per step, none twice."""

    def __init__(self, path: Path, step: int) -> None:
        """Opens the log for the steps after ``step``; lines of later steps, and a torn last line, are removed."""
        self.path = path
        self.dropped = 0
        """The newest step whose line was removed."""
        kept = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    number = json.loads(line)["step"]
                    if number <= step:
                        kept.append(line + "\n")
                    else:
                        self.dropped = max(self.dropped, number)
                except (ValueError, KeyError, TypeError):
                    continue
        replace_text(path, "".join(kept))
        self._stream = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Appends one line.

        Raises:
            RunError: the disk refuses it.
        """
        try:
            self._stream.write(json.dumps(values) + "\n")
            self._stream.flush()
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}; fix that and run the same command again"
            ) from None

    def sync(self) -> None:
        """Waits until all lines are on disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # every line has been flushed, or its error raised
            self._stream.close()
