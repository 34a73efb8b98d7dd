"""Images and labels in one ``.npz`` file of numpy's."""

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

from udit.data.config import DataInfo, NpzData
from udit.data.decode import DECODE_ERRORS
from udit.data.names import Names
from udit.data.notes import array_notes
from udit.data.sources import InMemory, Labels, Pixels
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


def npz_file(path: Path, num_classes: int | None = None) -> InMemory:
    """The images of a file; its own test images are held out.

    Args:
        path: holds images, uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3], and whole numbers [N] or [N, 1] as labels,
            under the keys of one of ``LAYOUTS``. MedMNIST's validation images are skipped.
        num_classes: labels must be below it; None allows any.

    Raises:
        UserError: no such file, no such arrays, or a label out of range. Pickled arrays are refused.
    """
    with _opened(path) as archive:
        pairs = _pairs(archive, path)
        pixels = [_pixels(_array(archive, path, images), path, images) for images, _ in pairs]
        labels = [_labels(_array(archive, path, key), path, key) for _, key in pairs]
    for x, y, (images, key) in zip(pixels, labels, pairs, strict=True):
        if len(x) != len(y):
            raise UserError(f"{path} holds {len(x)} images in {images} and {len(y)} labels in {key}; they must match")
        if num_classes is not None and y.max() >= num_classes:
            raise UserError(
                f"{path} has a label {y.max()} in {key} where there are {num_classes} classes; labels count from 0, "
                "name all classes in data.classes"
            )
    if pixels[0].shape[1:] != pixels[-1].shape[1:]:
        raise UserError(f"{path} holds test images of another shape than its training images; they must match")
    names = Names(f"{images} {i}" for x, (images, _) in zip(pixels, pairs, strict=True) for i in range(len(x)))
    held_out = range(len(pixels[0]), len(names))
    return InMemory(np.concatenate(pixels), np.concatenate(labels), names, held_out)


def load(data: NpzData) -> InMemory:
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
    path = data.path.expanduser()
    with _opened(path) as archive:
        pairs = _pairs(archive, path)
        shape = _header(archive, pairs[0][0], path).shape
        _check_shape(shape, path, pairs[0][0])
        classes = max(int(_labels(_array(archive, path, key), path, key).max()) for _, key in pairs) + 1
    return DataInfo(
        channels=shape[3] if len(shape) == 4 else 1,
        height=shape[1],
        width=shape[2],
        id2label=data.classes or tuple(str(label) for label in range(classes)),
    )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except (*DECODE_ERRORS, zipfile.BadZipFile, tokenize.TokenError) as error:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} cannot be read as .npz ({detail}); write it again with numpy.savez") from None


def _pairs(archive: zipfile.ZipFile, path: Path) -> list[tuple[str, str]]:
    """The keys of images and labels: of the training images, then of the test images where there are some."""
    keys = {name.removesuffix(".npy") for name in archive.namelist()}
    for images, labels in LAYOUTS:
        if {images, labels} <= keys:
            test = (images.replace("train", "test"), labels.replace("train", "test"))
            return [(images, labels)] + ([test] if test[0] != images and set(test) <= keys else [])
    known = ", ".join(f"{images} and {labels}" for images, labels in LAYOUTS)
    raise UserError(f"{path} holds {', '.join(sorted(keys)) or 'nothing'}; it needs arrays named {known}")


def _header(archive: zipfile.ZipFile, key: str, path: Path) -> Header:
    """One array's header, without its data.

    Raises:
        UserError: an array of objects, or one whose length does not match its header.
    """
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as stream:
        file = cast(BinaryIO, stream)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        there = member.file_size - stream.tell()
    promised = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or promised != there or not 0 < promised <= MAX_BYTES:
        raise UserError(
            f"{path} holds {there:,} bytes of {key} and its header says {dtype} {list(shape)}; arrays of numbers up "
            f"to {MAX_BYTES // 2**30} GB are read"
        )
    return Header(key, shape, dtype)


def _array(archive: zipfile.ZipFile, path: Path, key: str) -> NDArray[np.generic]:
    _header(archive, key, path)
    with archive.open(f"{key}.npy") as stream:
        found: NDArray[np.generic] = npy.read_array(stream, allow_pickle=False)
    return found


def _check_shape(shape: tuple[int, ...], path: Path, key: str) -> None:
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise UserError(f"{key} of {path} is {list(shape)}; images are [N, H, W], [N, H, W, 1] or [N, H, W, 3]")


def _pixels(array: NDArray[np.generic], path: Path, key: str) -> Pixels:
    """[N, C, H, W]."""
    _check_shape(array.shape, path, key)
    if array.dtype != np.uint8:
        raise UserError(f"{key} of {path} is {array.dtype}; images are uint8, 0 to 255")
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
