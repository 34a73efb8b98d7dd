"""LMDB as LSUN ships it (Yu et al. 2015, arXiv 1506.03365): a database for each category and part.

``bedroom_train_lmdb`` and ``bedroom_val_lmdb`` are folders with a ``data.mdb``; a key is a name, and its value the
bytes of a WebP or JPEG file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from udit.data.config import DataInfo, LmdbData
from udit.data.decode import peek
from udit.data.encoded import info_of
from udit.data.names import Names
from udit.data.notes import Notes
from udit.data.numbering import notes_on
from udit.errors import UserError, missing_extra

FILE = "data.mdb"
NAMED = re.compile(r"(?P<name>.+?)(_(?P<part>train|val|test))?(_lmdb|\.lmdb)?", re.DOTALL)
"""LSUN's names of databases: bedroom_train_lmdb."""


def describe(data: LmdbData) -> DataInfo:
    """Class names from the names of the databases; one alone has none.

    Raises:
        UserError: see ``databases``.
    """
    classes = _classes(databases(data.root.expanduser()))
    return info_of(data, classes, bool(classes))


def databases(root: Path) -> list[tuple[str, bool, Path]]:
    """(class, whether its images are test images, folder) of each database, in order; one alone has an empty class.

    Raises:
        UserError: there is none.
    """
    if (root / FILE).is_file():
        return [("", False, root)]
    found = []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if not (path / FILE).is_file():
            continue
        match = NAMED.fullmatch(path.name)
        assert match is not None
        if match["part"] == "test":  # LSUN's test images have no category
            continue
        found.append((match["name"], match["part"] == "val", path))
    if not found:
        raise UserError(f"data.root is {str(root)!r} and no LMDB: it holds no {FILE}, nor folders that do")
    trained = {name for name, test, _ in found if not test}
    if len(trained) == 1 and len({name for name, _, _ in found}) == 1:
        found = [("", test, path) for _, test, path in found]
    lonely = next((path for name, test, path in found if test and name not in trained), None)
    if trained and lonely is not None:
        raise UserError(f"{lonely} holds test images of a class that has no others; put its _train_lmdb beside it")
    return found if trained else [(name, False, path) for name, _, path in found]


def _classes(found: list[tuple[str, bool, Path]]) -> tuple[str, ...]:
    return tuple(sorted({name for name, _, _ in found} - {""}))


def records(data: LmdbData) -> LmdbRecords:
    """The image files of all databases.

    Raises:
        UserError: see ``databases``; lmdb is missing; or a database of another writer.
    """
    return LmdbRecords(databases(data.root.expanduser()))


class LmdbRecords:
    """Image files in LMDBs."""

    def __init__(self, found: list[tuple[str, bool, Path]]) -> None:
        """Reads the keys.

        Raises:
            UserError: lmdb is missing, or a database is damaged, empty, or holds something else than image files.
        """
        self.classes = _classes(found)
        self.paths = [path for _, _, path in found]
        self._open: dict[Path, tuple[int, Any]] = {}
        self._prefixes = [f"{name or path.name}{'/val' if test else ''}/" for name, test, path in found]
        sizes, counts, times = array("q"), [], []

        def names() -> Iterator[str]:
            for path, prefix in zip(self.paths, self._prefixes, strict=True):
                before = len(sizes)
                for key, size in self._keys(path):
                    sizes.append(size)
                    yield prefix + os.fsdecode(key)
                counts.append(len(sizes) - before)
                times.append((path / FILE).stat().st_mtime_ns)

        listed = Names(names())
        self.names: Sequence[str] = listed
        self.sizes = np.array(sizes, np.int64)
        self._starts = np.cumsum([0, *counts])
        numbers = [self.classes.index(name) if name else 0 for name, _, _ in found]
        self.labels = np.repeat(np.array(numbers, np.int64), counts)
        self.held_out = np.flatnonzero(np.repeat([test for _, test, _ in found], counts))
        digest = hashlib.sha256(listed.text.tobytes() + repr(self.classes).encode())
        for values in (listed.ends, self.sizes, self.labels, self.held_out):
            digest.update(values.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()
        self.stamp = hashlib.sha256(f"{self.fingerprint} {times}".encode()).hexdigest()
        self.notes = Notes()
        self.notes.update(notes_on(np.delete(self.labels, self.held_out), self.classes))

    def open(self, i: int) -> io.BytesIO:
        """The bytes of image i.

        Raises:
            UserError: the database is damaged, or has changed.
        """
        path, key = self._place(i)
        with _readable(path), self._database(path).begin() as reading:
            value = reading.get(key)
        if value is None:
            raise UserError(f"{path} no longer holds {key!r}; put the database back")
        return io.BytesIO(value)

    def called(self, i: int) -> str:
        """Database and key of image i."""
        path, key = self._place(i)
        return f"{path}, {os.fsdecode(key)}"

    def _place(self, i: int) -> tuple[Path, bytes]:
        """Database and key of image i."""
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.paths[number], os.fsencode(self.names[i][len(self._prefixes[number]) :])

    def _keys(self, path: Path) -> Iterator[tuple[bytes, int]]:
        """Key and length of each value; first and last are looked at, as another writer's need be no images."""
        with _readable(path), self._database(path).begin(buffers=True) as reading:
            cursor = reading.cursor()
            if not cursor.first():
                raise UserError(f"{path} is an empty LMDB; copy it again, or remove it")
            _check_value(path, bytes(cursor.key()), bytes(cursor.value()))
            cursor.last()
            _check_value(path, bytes(cursor.key()), bytes(cursor.value()))
            cursor.first()
            for key, value in cursor:
                yield bytes(key), len(value)

    def _database(self, path: Path) -> Any:
        """An open database of this process: one that was opened before a fork is another's."""
        pid, database = self._open.get(path, (0, None))
        if pid != os.getpid():
            if database is not None:
                database.close()  # this process's copy; lmdb opens none that it believes to be open
            options = {"readonly": True, "lock": False, "readahead": False, "meminit": False, "create": False}
            database = _library().open(str(path), **options)
            self._open[path] = os.getpid(), database
        return database


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Context in which lmdb's errors are one line of a user's."""
    library = _library()
    try:
        yield
    except (OSError, library.Error) as error:
        detail = " ".join(str(error).removeprefix(f"{path}: ").split())[:120]
        raise UserError(f"{path} cannot be read as an LMDB ({detail}); copy it again") from None


def _library() -> Any:
    try:
        import lmdb
    except ImportError:
        raise missing_extra("data.kind=lmdb", "lmdb", "formats") from None
    return lmdb


def _check_value(path: Path, key: bytes, value: bytes) -> None:
    try:
        peek(io.BytesIO(value), repr(key))
    except UserError as error:
        if "plugin" in str(error):
            raise
        raise UserError(
            f"{path} is an LMDB of another writer: the value of {key[:40]!r} begins with {value[:8].hex(' ')} and is "
            "no image file, as in LSUN's; write one image file for each key, or take another format"
        ) from None
