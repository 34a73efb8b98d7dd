"""Which format a data set on disk has, seen from its path: for ``udit data check``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from udit.data.config import DataConfig
from udit.data.listing import is_image
from udit.data.tar import PACKED_NAMES
from udit.errors import UserError
from udit.spec.base import kinds_of, parse_kind

FIELDS = "fields"
"""The array of an .npz file that holds fields of numbers."""
LOOKED_AT = 1000
"""Entries of a folder that are looked at for what it is."""
FORMATS = (
    "a folder of images with or without class folders, IDX files, .npz files, a zip or folder with dataset.json, "
    "webdataset's .tar shards, LSUN's LMDB, or a folder of .mp4 clips"
)


def recognised(path: Path, keys: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> Any:
    """The config of a data set, from its path.

    Args:
        path: a file, a folder, or a pattern of tar shards.
        keys: further keys of the config, with ``kind`` another one than the path suggests.
        usual: keys that are taken where a format has them and ``keys`` do not name them.

    Raises:
        UserError: there is nothing, or nothing of a known format; or unknown keys.
    """
    kind = str(keys.get("kind") or _kind(path))
    spec = kinds_of(DataConfig).get(kind)
    known = spec.model_fields if spec else {}
    place = {"path" if "path" in known else "root": str(path)}
    given = {key: value for key, value in (usual or {}).items() if key in known}
    return parse_kind(DataConfig, {"kind": kind, **place, **given, **keys}, "data")


def _kind(path: Path) -> str:
    text = str(path)
    suffix = path.suffix.lower()
    if suffix == ".tar" or path.name.lower().endswith(PACKED_NAMES) or any(letter in text for letter in "*?{"):
        return "webdataset"
    if not path.exists():
        return "npz" if suffix == ".npz" else "dataset-json" if suffix == ".zip" else "folder"  # whose words say so
    if path.is_file():
        if suffix == ".npz":
            return "fields" if _holds_fields(path) else "npz"
        if suffix == ".zip":
            return "dataset-json"
        if path.name == "data.mdb":
            raise UserError(f"{text!r} is the file of an LMDB; give the folder that holds it")
        raise UserError(f"{text!r} is of no known format; data sets are {FORMATS}")
    return _kind_of_folder(path)


def _holds_fields(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return f"{FIELDS}.npy" in archive.namelist()
    except (OSError, BadZipFile):
        return False  # the reader says so


def _kind_of_folder(path: Path) -> str:
    if (path / "dataset.json").is_file():
        return "dataset-json"
    names = [entry.name for entry in _entries(path)]
    if any("-ubyte" in name for name in names):
        return "idx"
    if "data.mdb" in names or any((path / name / "data.mdb").is_file() for name in names):
        return "lmdb"
    if not any(is_image(name) for name in names):
        ends: tuple[tuple[tuple[str, ...], str], ...] = (
            ((".tar", *PACKED_NAMES), "webdataset"),
            ((".npz",), "npz"),
            ((".mp4",), "clips"),
        )
        for suffixes, kind in ends:
            if any(name.lower().endswith(suffixes) for name in names):
                return kind
    return "folder"


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from islice(entries, LOOKED_AT)
    except OSError as error:
        raise UserError(f"folder {str(path)!r} cannot be listed ({error.strerror}); check its permissions") from None
