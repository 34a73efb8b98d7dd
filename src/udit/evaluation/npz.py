"""ADM's ``.npz`` files: sample batches (``arr_0``) and reference statistics (``mu``, ``sigma``, ``mu_s``, ``sigma_s``).

Arrays are read as plain numbers only, and only where a header's shape agrees with the bytes that follow it.
"""

from __future__ import annotations

import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from udit.errors import RunError, UserError
from udit.evaluation.frechet import Statistics
from udit.files import whole_file

MAX_BYTES = 1 << 35
"""Of one array, uncompressed: 50,000 images of 256x256 take a third."""
FACTS = "udit"
"""The name of a text in files written here: how they were made, as JSON. Other programs ignore it."""
_BROKEN = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError, TypeError, SyntaxError)
_TORN = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, tokenize.TokenError, RecursionError)


@dataclass(frozen=True)
class Contents:
    """What a ``.npz`` of images or of a reference holds; at least images or statistics."""

    images: NDArray[np.uint8] | None
    """[N, C, H, W]."""
    labels: NDArray[np.int64] | None
    pool: Statistics | None
    """Of Inception's 2048 pooled features, or of whatever ``facts`` names."""
    spatial: Statistics | None
    """Of the 2023 spatial features behind sFID."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class ImageStream:
    """Images that are written one part after another, so that they need not fit into memory."""

    count: int
    shape: tuple[int, ...]
    """(C, H, W), or (C, F, H, W) of clips."""
    parts: Iterable[NDArray[np.uint8]]
    """uint8 [n, C, H, W] each, ``count`` images in all."""


def read(path: Path) -> Contents:
    """Reads a batch of images, reference statistics, or both.

    Raises:
        UserError: the file is missing or damaged, holds Python objects, or arrays of wrong shapes.
    """
    arrays = _arrays(path)
    if "arr_0" not in arrays and not {"mu", "sigma"} <= arrays.keys():
        raise UserError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; needed are images (arr_0) or statistics (mu and "
            "sigma)"
        )
    images, labels = arrays.get("arr_0"), arrays.get("arr_1")
    if images is not None:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
            raise UserError(f"{path}: arr_0 is {images.dtype} {list(images.shape)}; needed is uint8 [N, H, W, 1 or 3]")
        images = images.transpose(0, 3, 1, 2)
    if labels is not None:
        if images is None or labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise UserError(f"{path}: arr_1 is {labels.dtype} {list(labels.shape)}; it holds one label per image")
        labels = labels.astype(np.int64)
    count = None if images is None else len(images)
    pool, spatial = (_statistics(path, arrays, *names, count) for names in (("mu", "sigma"), ("mu_s", "sigma_s")))
    return Contents(images, labels, pool, spatial, _facts(path, arrays.get(FACTS)))


def _statistics(
    path: Path, arrays: dict[str, NDArray[Any]], mu: str, sigma: str, count: int | None
) -> Statistics | None:
    if mu not in arrays and sigma not in arrays:
        return None
    if mu not in arrays or sigma not in arrays:
        raise UserError(f"{path} has only one of {mu} and {sigma}; a reference needs both")
    mean, cov = arrays[mu], arrays[sigma]
    for name, array in ((mu, mean), (sigma, cov)):
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"{path}: {name} is {array.dtype} and must be finite floats; make the reference again")
    if mean.ndim != 1 or len(mean) < 1 or cov.shape != (len(mean), len(mean)):
        raise UserError(
            f"{path}: {mu} is {list(mean.shape)} and {sigma} is {list(cov.shape)}; needed are [D] and [D, D]"
        )
    if not np.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * max(1.0, float(np.abs(cov).max()))):
        raise UserError(f"{path}: {sigma} is not symmetric, so it is not a covariance; make the reference again")
    return Statistics(mean.astype(np.float64), cov.astype(np.float64), count)


def _facts(path: Path, text: NDArray[Any] | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        facts = json.loads(str(text[()])) if text.ndim == 0 and text.dtype.kind == "U" else None
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise UserError(f"{path}: its note {FACTS!r} is not a JSON object; write the file again")
    return facts


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays with known names."""
    if not path.is_file():
        raise UserError(f"no file {str(path)!r}")
    try:
        found = {}
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in ("arr_0", "arr_1", "mu", "sigma", "mu_s", "sigma_s", FACTS):
                    with archive.open(info) as stream:
                        _check_header(stream, name, info.file_size)
                    with archive.open(info) as stream:
                        found[name] = np.lib.format.read_array(stream, allow_pickle=False)
        return found
    except (*_BROKEN, *_TORN) as error:
        detail = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path} is no readable .npz of numbers ({detail}); make or download it again") from None


def _check_header(stream: IO[bytes], name: str, size: int) -> None:
    """Checks that a header's shape and dtype account for exactly the bytes that follow."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is in format {version}")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are not opened")
    wanted = dtype.itemsize
    for length in shape:
        wanted *= int(length)
    if min(shape, default=0) < 0 or wanted != size - stream.tell() or wanted > MAX_BYTES:
        raise ValueError(f"{name} says it is {dtype} {list(shape)}, which its {size} bytes are not")


def write(
    path: Path,
    *,
    images: NDArray[np.uint8] | ImageStream | None = None,
    labels: NDArray[np.int64] | None = None,
    pool: Statistics | None = None,
    spatial: Statistics | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Writes a file that ``read`` and ADM's evaluator accept, completely or not at all.

    Args:
        path: ends in ``.npz``.
        images: uint8 [N, C, H, W], or a stream of them.
        labels: int64 [N].
        pool: written as ``mu`` and ``sigma``.
        spatial: written as ``mu_s`` and ``sigma_s``.
        facts: plain values, kept as a text.

    Raises:
        RunError: the file cannot be written.
    """
    if isinstance(images, np.ndarray):
        channels, height, width = images.shape[1:]
        images = ImageStream(len(images), (channels, height, width), [images])
    arrays: dict[str, Any] = {}
    if labels is not None:
        arrays["arr_1"] = labels
    for statistics, mu, sigma in ((pool, "mu", "sigma"), (spatial, "mu_s", "sigma_s")):
        if statistics is not None:
            arrays |= {mu: statistics.mean, sigma: statistics.cov}
    if facts:
        arrays[FACTS] = np.array(json.dumps(facts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:  # the format of np.savez
            if images is not None:
                with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                    _write_images(member, images)
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; make room or take another place") from None


def _write_images(member: IO[bytes], images: ImageStream) -> None:
    """Writes an array uint8 [N, H, W, C], of clips [N, F, H, W, C]."""
    channels, *rest = images.shape
    shape = (images.count, *rest, channels)
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
    written = 0
    for part in images.parts:
        member.write(np.ascontiguousarray(np.moveaxis(part, 1, -1)).data)
        written += len(part)
    assert written == images.count, f"{written} of {images.count} images were written"
