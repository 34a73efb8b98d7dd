"""Images and labels in ``.npz`` files of numpy's: small ones are read into memory, large ones memory-mapped."""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from udit.data import verify
from udit.data.config import DataInfo, NpzData
from udit.data.decode import DECODE_ERRORS
from udit.data.mapped import Mapped
from udit.data.names import Names
from udit.data.notes import array_notes
from udit.data.sources import InMemory, Labels, Pixels, Source
from udit.errors import UserError

LAYOUTS = (
    ("images", "labels"),
    ("arr_0", "arr_1"),  # ADM's sample batches, and `udit eval`'s
    ("train_images", "train_labels"),  # MedMNIST's
    ("x_train", "y_train"),  # Keras'
)
"""Keys of images and labels. Where they say ``train``, those of the test images say ``test``."""
MAX_BYTES = 2**34
"""Largest size of an array that is read."""
MAX_LABELS = 1_000_000
"""Classes that a file may have; a number above is an id, and a table of so many classes would fill the memory."""


@dataclass(frozen=True)
class Header:
    """What a file's header says about one of its arrays."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran: bool
    """Whether the first axis varies fastest."""


def npz_file(path: Path, num_classes: int | None = None) -> Source:
    """The images of a file, or of all files of a folder; their own test images are held out.

    Args:
        path: each file holds images, uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], and whole numbers [N] or [N, 1] as
            labels, under the keys of one of ``LAYOUTS``; or images alone. MedMNIST's validation images are skipped.
        num_classes: labels must be below it; None allows any.

    Returns:
        The images in memory; memory-mapped, if they take more than ``verify.MAX_MEMORY`` and are not compressed.

    Raises:
        UserError: no such file, no such arrays, or a label out of range. Pickled arrays are refused.
    """
    found = [array for file in _files(path) for array in _arrays(file, num_classes, path.is_dir())]
    if len({array.labelled for array in found}) > 1:
        raise UserError(f"{path}: some files have labels and others none; give all of them labels, or none")
    shapes = {array.shape[1:] for array in found}
    if len(shapes) > 1:
        raise UserError(f"{path} holds images of several shapes, {_listed(shapes)}; all must have the same")
    # test images last, as their numbers are the last
    found.sort(key=lambda array: array.test)
    names = Names(f"{array.called} {i}" for array in found for i in range(array.shape[0]))
    labels = np.concatenate([array.labels for array in found])
    first_test = sum(array.shape[0] for array in found if not array.test)
    held_out = np.arange(first_test, len(names))
    bytes_needed = sum(math.prod(array.shape) for array in found)
    if bytes_needed > verify.MAX_MEMORY and all(array.stored for array in found):
        return Mapped([(array.file, array.key, array.shape) for array in found], labels, names, held_out)
    pixels = [_pixels(array.read()) for array in found]
    return InMemory(np.concatenate(pixels) if len(pixels) > 1 else pixels[0], labels, names, held_out)


@dataclass(frozen=True)
class _Array:
    """Images of one file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    stored: bool
    """Whether it is there as it is, not compressed."""
    labels: Labels
    labelled: bool
    test: bool
    called: str
    """In the images' names."""

    def read(self) -> NDArray[np.generic]:
        with opened(self.file) as archive:
            return array_of(archive, self.file, self.key)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if files := sorted(path.glob("*.npz")):
        return files
    raise UserError(f"{path} cannot be read as .npz (a folder without .npz files); give a file, or a folder of some")


def _arrays(file: Path, num_classes: int | None, several: bool) -> list[_Array]:
    found = []
    with opened(file) as archive:
        for images, key in _pairs(archive, file):
            header = header_of(archive, images, file)
            _check_images(header, file)
            count = header.shape[0]
            y = np.zeros(count, np.int64) if key is None else _labels(array_of(archive, file, key), file, key)
            if count != len(y):
                raise UserError(
                    f"{file} holds {count} images in {images} and {len(y)} labels in {key}; they must match"
                )
            if num_classes is not None and key is not None and y.max() >= num_classes:
                raise UserError(
                    f"{file} has a label {y.max()} in {key} where there are {num_classes} classes; labels count from "
                    "0, name all classes in data.classes"
                )
            stored = archive.getinfo(f"{images}.npy").compress_type == zipfile.ZIP_STORED and not header.fortran
            called = f"{file.name}/{images}" if several else images
            found.append(_Array(file, images, header.shape, stored, y, key is not None, "test" in images, called))
    return found


def _listed(shapes: set[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in sorted(shapes))


def load(data: NpzData) -> Source:
    """The loaded data set; remarks on it are logged.

    Raises:
        UserError: see ``npz_file``.
    """
    source = npz_file(data.path.expanduser(), len(data.classes) or None)
    array_notes(source, len(data.classes)).warn()
    return source


def describe(data: NpzData) -> DataInfo:
    """Channels, size and class names, from the header of the images, and the labels.

    Raises:
        UserError: see ``npz_file``.
    """
    found = [array for file in _files(data.path.expanduser()) for array in _arrays(file, None, several=False)]
    shape, labelled = found[0].shape, found[0].labelled
    classes = max(int(array.labels.max()) for array in found) + 1 if labelled else 0
    return DataInfo(
        channels=shape[3] if len(shape) == 4 else 1,
        height=shape[1],
        width=shape[2],
        id2label=(data.classes or tuple(str(label) for label in range(classes))) if labelled else (),
        labelled=labelled,
    )


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A file's archive.

    Raises:
        UserError: it cannot be read, here or by what runs within.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except (*DECODE_ERRORS, zipfile.BadZipFile, tokenize.TokenError) as error:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} cannot be read as .npz ({detail}); write it again with numpy.savez") from None


def _pairs(archive: zipfile.ZipFile, path: Path) -> list[tuple[str, str | None]]:
    """The keys of images and labels: of the training images, then of the test images where there are some.

    None in place of labels where a file has images and none of the keys of labels.
    """
    keys = {name.removesuffix(".npy") for name in archive.namelist()}
    for images, labels in LAYOUTS:
        if {images, labels} <= keys:
            test = (images.replace("train", "test"), labels.replace("train", "test"))
            return [(images, labels), *([test] if test[0] != images and set(test) <= keys else [])]
    alone = [images for images, _ in LAYOUTS if images in keys]
    if alone and not keys & {labels for _, labels in LAYOUTS}:
        return [(alone[0], None)]
    known = ", ".join(f"{images} and {labels}" for images, labels in LAYOUTS)
    raise UserError(f"{path} holds {', '.join(sorted(keys)) or 'nothing'}; it needs arrays named {known}")


def header_of(archive: zipfile.ZipFile, key: str, path: Path) -> Header:
    """One array's header, without its data.

    Raises:
        UserError: an array of objects, or one whose length does not match its header.
    """
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as stream:
        file = cast(BinaryIO, stream)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        there = member.file_size - stream.tell()
    promised = math.prod(shape) * dtype.itemsize
    if 0 in shape:
        raise UserError(f"{path} holds {key} of shape {list(shape)}, which is empty; write it again with its images")
    if dtype.hasobject or promised != there or not 0 < promised <= MAX_BYTES:
        raise UserError(
            f"{path} holds {there:,} bytes of {key} and its header says {dtype} {list(shape)}; arrays of numbers up "
            f"to {MAX_BYTES // 2**30} GB are read"
        )
    return Header(key, shape, dtype, fortran)


def array_of(archive: zipfile.ZipFile, path: Path, key: str) -> NDArray[np.generic]:
    """One array of the archive of ``path``; see ``header_of``."""
    header_of(archive, key, path)
    with archive.open(f"{key}.npy") as stream:
        found: NDArray[np.generic] = npy.read_array(stream, allow_pickle=False)
    return found


def _check_images(header: Header, path: Path) -> None:
    shape, key = header.shape, header.key
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise UserError(f"{key} of {path} is {list(shape)}; images are [N, H, W], [N, H, W, 1] or [N, H, W, 3]")
    if header.dtype != np.uint8:
        raise UserError(f"{key} of {path} is {header.dtype}; images are uint8, 0 to 255")


def _pixels(array: NDArray[np.generic]) -> Pixels:
    """[N, C, H, W]."""
    x = cast(Pixels, array)
    return np.ascontiguousarray(x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2))


def _labels(array: NDArray[np.generic], path: Path, key: str) -> Labels:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise UserError(f"{key} of {path} is {array.dtype} {list(array.shape)}; labels are whole numbers [N] or [N, 1]")
    if flat.min() < 0:
        raise UserError(f"{key} of {path} hold {flat.min()}; labels count from 0")
    if flat.max() >= MAX_LABELS:
        raise UserError(
            f"{key} of {path} hold labels up to {flat.max()}, and {len(np.unique(flat))} different ones in all: ids "
            f"rather than classes; number the classes from 0 (at most {MAX_LABELS:,})"
        )
    return flat.astype(np.int64)
