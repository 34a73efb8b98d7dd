"""Sets of pictures and references as they lie on disk: folders and ``.npz`` files, of any program."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udit.data.decode import decode
from udit.data.sources import Pixels
from udit.errors import UserError
from udit.evaluation import npz
from udit.evaluation.fidelity import Extractor
from udit.evaluation.frechet import Statistics
from udit.files import file_sha256

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SHEET = "grid.png"
"""What `udit sample` lays beside its pictures; no sample."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with: statistics, and the features of its pictures where they are known."""

    sha256: str
    """Of the file, or of the folder's pixels."""
    count: int | None
    """Pictures behind it, where known."""
    pool: Statistics
    spatial: Statistics | None
    features: Any = None
    """[M, D] of the pictures, or None: then there is no KID, precision or recall."""


def read_pictures(path: Path) -> Pixels:
    """The pictures of a folder (and the folders in it, by name) or of a ``.npz``, as [N, C, H, W].

    Raises:
        UserError: nothing there, a broken file, or pictures of several sizes: none is resized here.
    """
    if path.is_dir():
        return _folder(path)
    contents = npz.read(path)
    if contents.images is None:
        raise UserError(f"{path} holds statistics and no pictures (arr_0); give samples")
    return contents.images


def _folder(path: Path) -> Pixels:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.name != SHEET)
    if len(files) < 2:
        raise UserError(f"{path} holds {len(files)} pictures (PNG, JPEG or WebP); at least 2 are needed")
    try:
        sizes = {file: Image.open(file).size for file in files[:1]}
    except OSError:
        raise UserError(f"picture {str(files[0])!r} cannot be read; replace or remove it") from None
    side = sizes[files[0]]

    def read(file: Path) -> Pixels:
        with Image.open(file) as image:
            size = image.size
        if size != side or size[0] != size[1]:
            raise UserError(
                f"picture {str(file)!r} is {size[0]}x{size[1]} and the first is {side[0]}x{side[1]}; a score needs "
                "squares of one size, for resizing would change it"
            )
        return decode(file, size[0], 3)

    with ThreadPoolExecutor() as pool:
        try:
            return np.stack(list(pool.map(read, files)))
        except OSError as error:
            raise UserError(f"a picture of {path} cannot be read ({error}); replace or remove it") from None


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """A reference for one extractor: statistics as they stand in the file, the rest from its pictures.

    Raises:
        UserError: unreadable, or statistics that another extractor made.
    """
    if path.is_dir():
        return reference_of(_folder(path), extractor)
    contents = npz.read(path)
    made_by, width = contents.facts.get("extractor_sha256"), None
    if contents.pool is not None and made_by is not None and made_by != extractor.sha256:
        raise UserError(
            f"{path} has statistics of {contents.facts.get('extractor')} with weights {str(made_by)[:12]}, and the "
            f"samples go through {extractor.name} with {extractor.sha256[:12]}; use one of them for both"
        )
    digest = file_sha256(path)
    if contents.images is None:
        assert contents.pool is not None, "npz.read lets nothing else through"
        count = contents.facts.get("count")
        return Reference(digest, count if isinstance(count, int) else None, contents.pool, contents.spatial)
    found = reference_of(contents.images, extractor)
    pool, spatial, count = found.pool, found.spatial, found.count
    if contents.pool is not None:
        width = len(contents.pool.mean)
        if width != len(found.pool.mean):
            raise UserError(
                f"{path} has statistics of {width} features and {extractor.name} gives {len(found.pool.mean)}; make a "
                "reference of its pictures with `udit ref make`"
            )
        pool, spatial = contents.pool, contents.spatial or spatial
    return Reference(digest, count, pool, spatial, found.features)


def reference_of(images: Pixels, extractor: Extractor) -> Reference:
    """A reference made of pictures [N, C, H, W]."""
    features = extractor(images)
    spatial = None if features.spatial is None else Statistics.of(features.spatial)
    digest = hashlib.sha256(repr(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()
    return Reference(digest, len(images), Statistics.of(features.pool), spatial, features.pool)
