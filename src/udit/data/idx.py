"""IDX files, the format of MNIST (LeCun, Cortes, Burges 1998) and of data sets made to replace it."""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from udit.data.config import DataInfo, IdxFiles
from udit.data.names import Names
from udit.data.notes import label_notes
from udit.data.sources import InMemory, Labels, Pixels
from udit.errors import UserError

PARTS = ("train", "t10k")
"""How the names of a data set's files begin; t10k holds the test images."""
MAX_BYTES = 2**32
"""Largest unpacked size of a file that is read; a small file can claim to be huge."""

logger = logging.getLogger(__name__)


def describe(data: IdxFiles) -> DataInfo:
    """Size and class names, from the files' headers and labels where ``size`` and ``classes`` are not given.

    Raises:
        UserError: files that are missing or are not IDX files.
    """
    height, width = (data.size, data.size) if data.size else shape_of(_root(data))
    names = data.classes or tuple(str(label) for label in range(count_classes(_root(data))))
    return DataInfo(channels=1, height=height, width=width, id2label=names)


def load(data: IdxFiles) -> InMemory:
    """The loaded data set.

    Raises:
        UserError: see ``idx_files``.
    """
    source = idx_files(_root(data), len(describe(data).id2label), data.size)
    for note in label_notes(source.labels):
        logger.warning("data: %s", note)
    return source


def _root(data: IdxFiles) -> Path:
    """Where the files are.

    Raises:
        UserError: the default folder does not exist; says how to get it.
    """
    if data.INSTALL and data.root == type(data).model_fields["root"].default and not data.root.is_dir():
        raise UserError(
            f"data.root is {str(data.root)!r} and is not there; {data.INSTALL}, or give the folder that holds the four "
            "files"
        )
    return data.root.expanduser()


def shape_of(root: Path) -> tuple[int, int]:
    """Height and width of the images in a folder of IDX files, from a header.

    Raises:
        UserError: no such files, or a damaged header.
    """
    path = _find(root, "train", "images", 3)
    with _open(path) as stream:
        _, height, width = _header(stream, path, 3)
    return height, width


def count_classes(root: Path) -> int:
    """One more than the largest label.

    Raises:
        UserError: see ``read``.
    """
    return max(int(read(path, 1).max()) for path in _all(root, "labels", 1)) + 1


def idx_files(root: Path, num_classes: int, size: int | None = None) -> InMemory:
    """The images in a folder of IDX files, [1, H, W]; those of the t10k files are the test images.

    Args:
        root: holds train-images-idx3-ubyte, train-labels-idx1-ubyte and, if there are test images, the same of t10k;
            plain or gzipped.
        num_classes: labels must be below it.
        size: pads images with black on all sides to this side; None leaves them as they are.

    Raises:
        UserError: a file that is missing, incomplete or not an IDX file, files that do not belong together, a label out
            of range, or images larger than ``size``.
    """
    pixels: list[Pixels] = []
    labels: list[Labels] = []
    names: list[str] = []
    held_out = 0
    for part, images, classes in zip(PARTS, _all(root, "images", 3), _all(root, "labels", 1), strict=False):
        x, y = read(images, 3), read(classes, 1)
        if len(x) != len(y):
            raise UserError(f"{images} holds {len(x)} images and {classes} {len(y)} labels; the numbers must match")
        if y.max() >= num_classes:
            raise UserError(
                f"{classes} has a label {y.max()} where there are {num_classes} classes; labels count from 0, name all "
                "classes in data.classes"
            )
        pixels.append(_padded(x, size))
        if pixels[0].shape[1:] != pixels[-1].shape[1:]:
            raise UserError(
                f"images of {images} are {x.shape[1]}x{x.shape[2]} and do not match the train file's; give data.size"
            )
        labels.append(y.astype(np.int64))
        names += [f"{part} {i}" for i in range(len(x))]
        held_out += len(x) if part == "t10k" else 0
    count = len(names)
    return InMemory(
        np.concatenate(pixels)[:, None], np.concatenate(labels), Names(names), np.arange(count - held_out, count)
    )


def _padded(pixels: Pixels, size: int | None) -> Pixels:
    if size is None:
        return pixels
    height, width = pixels.shape[1:]
    if size < max(height, width):
        raise UserError(f"data.size is {size} and the images are {height}x{width}; give {max(height, width)} or more")
    sides = [((size - side) // 2, (size - side + 1) // 2) for side in (height, width)]
    return np.pad(pixels, [(0, 0), *sides])


def read(path: Path, dimensions: int) -> Pixels:
    """The bytes of one IDX file.

    Args:
        path: the file.
        dimensions: that its header must have.

    Raises:
        UserError: not such a file, incomplete, or longer than its header says.
    """
    with _open(path) as stream:
        shape = _header(stream, path, dimensions)
        wanted = int(np.prod(shape))
        parts, left = [], wanted + 1
        try:
            while left and (part := stream.read(min(left, 2**24))):  # the file may be shorter than it claims
                parts.append(part)
                left -= len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(_unreadable(path, error)) from None
    found = wanted + 1 - left
    if found != wanted:
        there = "more" if found > wanted else f"only {found:,}"
        raise UserError(f"{path} has a header for {wanted:,} bytes and holds {there}; download it again")
    return np.frombuffer(b"".join(parts), np.uint8).reshape(shape)


def _header(stream: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    """The lengths in a file's header, which starts with 0, 0, 8 for bytes, and the number of dimensions."""
    try:
        head = stream.read(4 + 4 * dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(_unreadable(path, error)) from None
    magic = bytes((0, 0, 8, dimensions))
    if head[:4] != magic:
        raise UserError(
            f"{path} starts with {head[:4].hex() or 'nothing'}, but an IDX file of bytes in {dimensions} dimensions "
            f"starts with {magic.hex()}; put the right file there"
        )
    if len(head) < 4 + 4 * dimensions:
        raise UserError(f"{path} ends within its header; download it again")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    if not 0 < int(np.prod(shape, dtype=object)) <= MAX_BYTES:
        raise UserError(
            f"{path} has a header for {'x'.join(map(str, shape))} bytes; files of 1 byte to {MAX_BYTES // 2**30} GB "
            "are read"
        )
    return shape


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: Exception) -> str:
    detail = getattr(error, "strerror", None) or str(error)
    return f"{path} cannot be read ({detail}); download it again"


def _find(root: Path, part: str, what: str, dimensions: int) -> Path:
    """One of the four files."""
    wanted = f"{part}-{what}-idx{dimensions}-ubyte"
    for name in (wanted, f"{wanted}.gz"):
        if (root / name).is_file():
            return root / name
    raise UserError(f"{str(root)!r} holds no {wanted}, plain or .gz; put it there, or change data.root")


def _all(root: Path, what: str, dimensions: int) -> Sequence[Path]:
    """The file of each part; a data set without test images has no t10k files."""
    parts = PARTS if any(root.glob("t10k-*")) else PARTS[:1]
    return [_find(root, part, what, dimensions) for part in parts]
