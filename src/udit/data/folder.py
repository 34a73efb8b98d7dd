"""Folders of class folders of pictures."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from udit.data.decode import decode
from udit.data.sources import Pixels
from udit.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MAX_MEMORY = 2**30
"""Bytes up to which a decoded data set is kept in memory."""

logger = logging.getLogger(__name__)


def class_names(root: Path | str) -> list[str]:
    """The class folders in ``root``, sorted; hidden ones do not count.

    Raises:
        UserError: no such folder, no class folders in it, or one without pictures.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.root is {str(root)!r}, no folder; give one that holds a folder of pictures for each class"
        )
    try:
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"data.root {str(root)!r} cannot be listed ({error.strerror}); check its permissions") from None
    if not names:
        raise UserError(
            f"data.root {str(root)!r} holds no class folders; put each class's pictures in a folder of its own"
        )
    for name in names:
        if next(_files(root / name), None) is None:
            raise UserError(
                f"class folder {str(root / name)!r} holds no PNG, JPEG or WebP picture; add some or remove it"
            )
    return names


def _files(folder: Path, *, others: bool = False) -> Iterator[Path]:
    """Visible pictures in a folder and below; with ``others``, the visible files that are not pictures."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and (path.suffix.lower() in SUFFIXES) != others and path.is_file():
                yield path


class ImageFolder:
    """A folder of class folders of pictures, cut square as ADM does (Dhariwal & Nichol 2021)."""

    def __init__(self, root: Path | str, size: int, channels: Literal[1, 3]) -> None:
        """Lists the folder; decodes nothing.

        Args:
            root: holds one folder a class; folders inside these belong to the class.
            size: side of the pictures in pixels.
            channels: 3 for RGB, 1 for grey.

        Raises:
            UserError: see ``class_names``.
        """
        self.root = Path(root).expanduser()
        self.size = size
        self.channels = channels
        names: list[str] = []
        labels: list[int] = []
        digest = hashlib.sha256()
        for label, name in enumerate(class_names(self.root)):
            paths = sorted(path.relative_to(self.root).as_posix() for path in _files(self.root / name))
            names += paths
            labels += [label] * len(paths)
        for name in names:
            digest.update(f"{name}\0{(self.root / name).stat().st_size}\n".encode("utf-8", "surrogateescape"))
        self.names: Sequence[str] = names
        self.labels = np.array(labels, np.int64)
        self.held_out = np.empty(0, np.int64)
        self.fingerprint = digest.hexdigest()
        self._pixels: Pixels | None = None
        self._warn_of_others()

    def _warn_of_others(self) -> None:
        others = [path for name in class_names(self.root) for path in _files(self.root / name, others=True)]
        if others:
            logger.warning(
                "%d files in %s are no PNG, JPEG or WebP and left out, e.g. %s", len(others), self.root, others[0]
            )

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def image(self, i: int) -> Pixels:
        """Picture ``i``, [C, H, W] in 0..255.

        Raises:
            UserError: it cannot be decoded, or is larger than ``MAX_PIXELS``.
        """
        if self._pixels is not None:
            picture: Pixels = self._pixels[i]
            return picture
        return decode(self.root / self.names[i], self.size, self.channels)

    def verify(self) -> None:
        """Decodes every picture once, and keeps them all if they fit into ``MAX_MEMORY``.

        Raises:
            UserError: pictures that cannot be decoded; names the first and counts them.
        """
        if self._pixels is not None:
            return
        shape = (len(self), self.channels, self.size, self.size)
        pixels = np.empty(shape, np.uint8) if math.prod(shape) <= MAX_MEMORY else None
        bad: list[str] = []
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            tqdm(total=len(self), desc="decoding", unit="picture", disable=not sys.stderr.isatty(), leave=False) as bar,
        ):
            # in slices, for map() would queue a whole ImageNet at once
            for start in range(0, len(self), 256):
                for i, result in enumerate(pool.map(self._attempt, range(start, min(start + 256, len(self)))), start):
                    if isinstance(result, str):
                        bad.append(result)
                    elif pixels is not None:
                        pixels[i] = result
                    bar.update()
        if len(bad) > 1:
            raise UserError(f"{bad[0]} ({len(bad)} of {len(self)} pictures are unusable)")
        if bad:
            raise UserError(bad[0])
        self._pixels = pixels

    def _attempt(self, i: int) -> Pixels | str:
        try:
            return self.image(i)
        except UserError as error:
            return str(error)
