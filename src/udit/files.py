"""Files and folders that are complete or absent, and digests that detect a damaged or altered one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udit.errors import UserError, resembling
from udit.spec.digest import FileFacts

TEMPORARY = ".tmp-"
"""Prefix of what is being written; ``sweep`` removes what a killed process left of it."""
_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""Name of a file that safetensors writes beside its target and renames; a killed process leaves it."""


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary sibling to write, which takes the name ``path`` on leaving; after an error it is removed.

    Args:
        path: the file; one that is there is replaced, and intact until then. Its folder must exist.
        durable: wait until bytes and name are on disk, so that a power cut cannot tear the file either.

    Raises:
        OSError: the disk refuses it.
    """
    temporary = temporary_sibling(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path, *, replace: bool = False, temporary: Path | None = None) -> Iterator[Path]:
    """A new temporary sibling folder to fill, which takes the name ``path`` on leaving; after an error it is removed.

    Every file in it is on disk before the folder has its name.

    Args:
        path: the folder; its parents are made.
        replace: an existing one is replaced; without, a folder that is not empty is an OSError.
        temporary: the sibling's path, where other processes have to know it; ``temporary_sibling`` by default.

    Raises:
        OSError: the disk refuses it.
    """
    temporary = temporary or temporary_sibling(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for entry in temporary.rglob("*"):
            sync(entry)
        sync(temporary)
        if replace and path.exists():
            before = temporary_sibling(path.with_name(f"old-{path.name}"))
            path.rename(before)
            temporary.rename(path)
            shutil.rmtree(before, ignore_errors=True)
        else:
            temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


MARKS = ("run.yaml", "config.json")
"""Of which a run folder or a model folder has one."""


def meant(name: str | Path) -> str:
    """The tail of an error on a folder that is not there: a run or model of nearly that name beside it, or in runs/.

    Returns:
        ``"; did you mean 'runs/digits'?"``, or ``""`` where there is nothing of the kind.
    """
    path = Path(name).expanduser()
    for place in dict.fromkeys((path.parent, Path("runs"))):
        with contextlib.suppress(OSError):
            found = [entry for entry in place.iterdir() if any((entry / mark).is_file() for mark in MARKS)]
            names = [entry.name for entry in found if entry != path]
            if close := resembling(path.name, sorted(names)):
                return f"; did you mean {' or '.join(repr(str(place / near)) for near in close)}?"
    return ""


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file, whole and durable.

    Raises:
        OSError: the disk refuses it.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cache_folder() -> Path:
    """The user's cache folder, for what can be recomputed: udit in ``$XDG_CACHE_HOME``, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "udit"


def check_writable(folder: Path) -> None:
    """Writes a small file into a folder and removes it.

    Raises:
        OSError: that cannot be done.
    """
    probe = temporary_sibling(folder / "probe")
    try:
        probe.write_bytes(b"udit")
    finally:
        probe.unlink(missing_ok=True)


def check_room(folder: Path, bytes_needed: int) -> None:
    """Makes a folder and refuses one that cannot be written to, or whose disk is too full for what will be written.

    Raises:
        UserError: names the folder and, of a full disk, what it takes and what is free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; make it writable") from None
    free = shutil.disk_usage(folder).free
    if free < bytes_needed:
        raise UserError(
            f"about {bytes_needed / 1e6:,.1f} MB go to {folder}, which has {free / 1e6:,.1f} MB free; make room"
        )


def temporary_sibling(path: Path) -> Path:
    """Where this process writes what becomes ``path``; the suffix is kept, which some writers go by."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def sweep(folder: Path) -> None:
    """Removes what killed writers left in a folder that only this process writes to."""
    for entry in folder.glob(".tmp*"):
        ours = entry.name.startswith(TEMPORARY)
        if ours and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif ours or (_OF_SAFETENSORS.fullmatch(entry.name) and entry.is_file()):
            entry.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk.

    Raises:
        OSError: the disk refuses it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(manifest: dict[str, Any]) -> str:
    """A manifest as JSON text with its own sha256 as the last key."""
    digest = hashlib.sha256(_canonical(manifest).encode()).hexdigest()
    return _canonical({**manifest, "digest": digest})


def unseal(text: str) -> dict[str, Any]:
    """The manifest in a text of ``seal``.

    Raises:
        ValueError: not a JSON object, or changed after it was sealed.
        RecursionError: nested too deeply to be one.
    """
    manifest = json.loads(text)
    if not isinstance(manifest, dict):
        raise ValueError("it holds no JSON object")
    unsealed = {key: value for key, value in manifest.items() if key != "digest"}
    if text != seal(unsealed):
        raise ValueError("it does not match its own digest")
    return unsealed


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_facts(path: Path) -> FileFacts:
    """Size and digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    return FileFacts(bytes=path.stat().st_size, sha256=file_sha256(path))


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
