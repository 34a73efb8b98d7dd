"""IDX files, the format of MNIST (LeCun, Cortes, Burges 1998) and of those that ship in its clothes."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from udit.data.names import Names
from udit.data.sources import InMemory, Labels, Pixels
from udit.errors import UserError

PARTS = ("train", "t10k")
"""What the files of a data set are called after; t10k holds the test pictures."""
MAX_BYTES = 2**32
"""Most that a file may unpack to; a small one can claim to be huge."""


def shape_of(root: Path) -> tuple[int, int]:
    """Height and width of the pictures in a folder of IDX files, from a header.

    Raises:
        UserError: no such files, or a header that is none.
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
    """The pictures in a folder of IDX files, [1, H, W]; those of the t10k files are held out.

    Args:
        root: holds train-images-idx3-ubyte, train-labels-idx1-ubyte and, if there are test pictures, the same of t10k;
            plain or gzipped.
        num_classes: how many labels may be found.
        size: pads with black, evenly, to this side; None leaves pictures as they are.

    Raises:
        UserError: a file that is missing, torn or no IDX, files that do not fit each other, a label out of range, or
            pictures larger than ``size``.
    """
    pixels: list[Pixels] = []
    labels: list[Labels] = []
    names: list[str] = []
    held_out = 0
    for part, images, classes in zip(PARTS, _all(root, "images", 3), _all(root, "labels", 1), strict=False):
        x, y = read(images, 3), read(classes, 1)
        if len(x) != len(y):
            raise UserError(f"{images} holds {len(x)} pictures and {classes} {len(y)} labels; they must be of one set")
        if y.max() >= num_classes:
            raise UserError(
                f"{classes} has a label {y.max()} where there are {num_classes} classes; labels count from 0, name as "
                "many data.classes"
            )
        pixels.append(_padded(x, size))
        if pixels[0].shape[1:] != pixels[-1].shape[1:]:
            raise UserError(
                f"pictures of {images} are {x.shape[1]}x{x.shape[2]}, unlike the train file's; give data.size"
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
        raise UserError(f"data.size is {size} and the pictures are {height}x{width}; give {max(height, width)} or more")
    sides = [((size - side) // 2, (size - side + 1) // 2) for side in (height, width)]
    return np.pad(pixels, [(0, 0), *sides])


def read(path: Path, dimensions: int) -> Pixels:
    """The bytes of one IDX file of so many dimensions.

    Raises:
        UserError: not such a file, torn, or with something behind its end.
    """
    with _open(path) as stream:
        shape = _header(stream, path, dimensions)
        wanted = int(np.prod(shape))
        parts, left = [], wanted + 1
        try:
            while left and (part := stream.read(min(left, 2**24))):  # what is claimed need not be there
                parts.append(part)
                left -= len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(_unreadable(path, error)) from None
    found = wanted + 1 - left
    if found != wanted:
        there = "more" if found > wanted else f"only {found:,}"
        raise UserError(f"{path} promises {wanted:,} bytes and holds {there}; download it again")
    return np.frombuffer(b"".join(parts), np.uint8).reshape(shape)


def _header(stream: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    """The lengths that a file promises; it starts with 0, 0, 8 for bytes, and the number of dimensions."""
    try:
        head = stream.read(4 + 4 * dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(_unreadable(path, error)) from None
    magic = bytes((0, 0, 8, dimensions))
    if head[:4] != magic:
        raise UserError(
            f"{path} starts with {head[:4].hex() or 'nothing'}, no IDX file of {dimensions} dimensions of bytes "
            f"({magic.hex()}); put the right file there"
        )
    if len(head) < 4 + 4 * dimensions:
        raise UserError(f"{path} ends within its header; download it again")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    if not 0 < int(np.prod(shape, dtype=object)) <= MAX_BYTES:
        raise UserError(
            f"{path} promises {'x'.join(map(str, shape))} bytes; files of 1 byte to {MAX_BYTES // 2**30} GB are read"
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
    """One file of the four."""
    wanted = f"{part}-{what}-idx{dimensions}-ubyte"
    for name in (wanted, f"{wanted}.gz"):
        if (root / name).is_file():
            return root / name
    raise UserError(f"{str(root)!r} holds no {wanted}, plain or .gz; put it there, or change data.root")


def _all(root: Path, what: str, dimensions: int) -> Sequence[Path]:
    """The file of each part; a data set without test pictures has no t10k."""
    parts = PARTS if any(root.glob("t10k-*")) else PARTS[:1]
    return [_find(root, part, what, dimensions) for part in parts]
