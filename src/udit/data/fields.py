"""Fields of numbers in one ``.npz`` file: states of a simulation, measurements, anything that is no image of 8 bits."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udit.data.config import DataInfo, FieldsData
from udit.data.names import Names
from udit.data.npz import array_of, header_of, opened
from udit.data.recognise import FIELDS
from udit.data.sources import Labels
from udit.errors import RunError, UserError
from udit.files import whole_file

TRAJECTORY, TEST = "trajectory", "test_"
Floats = NDArray[np.float32]


class FieldSource:
    """Fields in memory, with the state before each where they are a simulation's.

    A state without one before it, the first of its trajectory, is no image of the source then.
    """

    def __init__(self, fields: Floats, trajectory: Labels, held_out: int, ordered: bool) -> None:
        """Takes [N, C, H, W] fields, the trajectory of each, how many of the last are tests', and what is asked for."""
        self.fields = fields
        rows = np.arange(len(fields))
        follows = np.concatenate([[False], trajectory[1:] == trajectory[:-1]])
        follows[len(fields) - held_out : len(fields) - held_out + 1] = False
        self.rows = rows[follows] if ordered else rows
        """Of the source's images."""
        self.before: Labels | None = self.rows - 1 if ordered else None
        """Row of the state before each image; None where the order does not count."""
        self.labels = np.zeros(len(self.rows), np.int64)
        self.names: Sequence[str] = Names(f"field {row} of trajectory {trajectory[row]}" for row in self.rows)
        self.held_out: Labels = np.flatnonzero(self.rows >= len(fields) - held_out).astype(np.int64)
        digest = hashlib.sha256(repr((fields.shape, ordered)).encode())
        for array in (fields, trajectory.astype("<i8"), np.array(held_out, "<i8")):
            digest.update(np.ascontiguousarray(array).data)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def image(self, i: int) -> NDArray[Any]:
        """Field ``i``, float32 [C, H, W]."""
        found: Floats = self.fields[self.rows[i]]
        return found

    def verify(self) -> None:
        """Does nothing: all numbers were checked when they were read."""


def load(data: FieldsData) -> FieldSource:
    """The loaded data set.

    Raises:
        UserError: no such file, no such arrays, arrays of other shapes, or a number that is not finite.
    """
    path = data.path.expanduser()
    with opened(path) as archive:
        keys = keys_of(archive)
        parts = [prefix for prefix in ("", TEST) if prefix + FIELDS in keys]
        if "" not in parts:
            raise UserError(f"{path} holds {', '.join(sorted(keys)) or 'nothing'}; it needs an array named {FIELDS}")
        arrays = [_fields(array_of(archive, path, prefix + FIELDS), path, prefix + FIELDS) for prefix in parts]
        trajectories = []
        for prefix, fields in zip(parts, arrays, strict=True):
            key = prefix + TRAJECTORY
            numbers = array_of(archive, path, key) if key in keys else np.zeros(len(fields), np.int64)
            if numbers.dtype.kind not in "iu" or numbers.shape != (len(fields),):
                raise UserError(
                    f"{key} of {path} is {numbers.dtype} {list(numbers.shape)}; it has a whole number for each of the "
                    f"{len(fields)} fields"
                )
            trajectories.append(numbers.astype(np.int64))
    if arrays[0].shape[1:] != arrays[-1].shape[1:]:
        raise UserError(f"{path} holds {TEST}{FIELDS} of another shape than {FIELDS}; they must match")
    held_out = len(arrays[1]) if len(arrays) > 1 else 0
    ordered = data.condition is not None and data.condition.kind == "previous"
    source = FieldSource(np.concatenate(arrays), np.concatenate(trajectories), held_out, ordered)
    if not len(source):
        raise UserError(f"{path} has no state with another before it; give the same {TRAJECTORY} to those that follow")
    return source


def describe(data: FieldsData) -> DataInfo:
    """Channels and size, from the header.

    Raises:
        UserError: see ``load``.
    """
    path = data.path.expanduser()
    with opened(path) as archive:
        if FIELDS not in keys_of(archive):
            raise UserError(
                f"{path} holds {', '.join(sorted(keys_of(archive))) or 'nothing'}; it needs an array named {FIELDS}"
            )
        header = header_of(archive, FIELDS, path)
    _check(header.dtype, header.shape, path, FIELDS)
    return DataInfo(
        channels=header.shape[1], height=header.shape[2], width=header.shape[3], id2label=(), labelled=False
    )


def statistics(data: FieldsData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the fields that are not tests'.

    Raises:
        UserError: see ``load``; or a channel is the same number everywhere.
    """
    path = data.path.expanduser()
    with opened(path) as archive:
        fields = _fields(array_of(archive, path, FIELDS), path, FIELDS)
    mean, std = (getattr(fields, name)(axis=(0, 2, 3), dtype=np.float64).tolist() for name in ("mean", "std"))
    if 0 in std:
        raise UserError(
            f"channel {std.index(0)} of {FIELDS} in {path} is {mean[std.index(0)]:g} everywhere; leave it out, or give "
            "codec.mean and codec.std"
        )
    return tuple(_rounded(mean)), tuple(_rounded(std))


def _rounded(numbers: list[float]) -> list[float]:
    """Six digits, so that a run is the same one on processors that sum in another order."""
    return [float(f"{number:.6g}") for number in numbers]


def read_fields(path: Path) -> Floats:
    """The array ``fields`` of a file, float32 [N, C, H, W].

    Raises:
        UserError: see ``load``.
    """
    with opened(path) as archive:
        if FIELDS not in keys_of(archive):
            raise UserError(f"{path} holds {', '.join(sorted(keys_of(archive)))}; it needs an array named {FIELDS}")
        return _fields(array_of(archive, path, FIELDS), path, FIELDS)


def write_fields(path: Path, fields: Floats) -> None:
    """Writes an ``.npz`` with ``fields``, completely or not at all.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        with whole_file(path, durable=False) as temporary, temporary.open("wb") as stream:
            np.savez(stream, fields=fields)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; give a writable place with enough room"
        ) from None


def keys_of(archive: zipfile.ZipFile) -> set[str]:
    """The names of a file's arrays."""
    return {name.removesuffix(".npy") for name in archive.namelist()}


def _check(dtype: np.dtype[Any], shape: tuple[int, ...], path: Path, key: str) -> None:
    if dtype.kind != "f" or len(shape) != 4:
        raise UserError(f"{key} of {path} is {dtype} {list(shape)}; fields are floats [N, C, H, W]")


def _fields(array: NDArray[Any], path: Path, key: str) -> Floats:
    _check(array.dtype, array.shape, path, key)
    with np.errstate(over="ignore"):
        fields = array.astype(np.float32)
    finite = np.isfinite(fields)
    if not finite.all():
        row, channel, line, column = (int(k) for k in np.argwhere(~finite)[0])
        raise UserError(
            f"{key} of {path} holds {array[row, channel, line, column]} in field {row}, channel {channel}, row {line}, "
            f"column {column}; numbers must be finite float32, leave such fields out"
        )
    return fields
