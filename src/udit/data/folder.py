"""Folders of image files, one folder per class; with any number of files."""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from udit.data.config import DataInfo, FolderData
from udit.data.decode import MAX_PIXELS, Budget, decode, peek
from udit.data.names import Names
from udit.data.sources import Pixels
from udit.data.verify import verified
from udit.errors import UserError
from udit.files import cache_folder

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif"})

logger = logging.getLogger(__name__)


def describe(data: FolderData) -> DataInfo:
    """Class names from the names of the folders.

    Raises:
        UserError: see ``class_names``.
    """
    names = tuple(class_names(data.root))
    return DataInfo(channels=data.channels, height=data.size, width=data.size, id2label=names)


def class_folders(root: Path) -> list[str]:
    """The visible folders in ``root``, sorted.

    Raises:
        UserError: no such folder, or no folders in it.
    """
    if not root.is_dir():
        raise UserError(f"data.root is {str(root)!r}, no folder; give one that holds one folder of images per class")
    try:
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"data.root {str(root)!r} cannot be listed ({error.strerror}); check its permissions") from None
    if not names:
        raise UserError(
            f"data.root {str(root)!r} holds no class folders; put the images of each class into a folder of its own"
        )
    return names


def class_names(root: Path | str) -> list[str]:
    """The names of the class folders in ``root``, sorted; hidden ones are skipped.

    Raises:
        UserError: no such folder, no folders in it, or one without images.
    """
    root = Path(root).expanduser()
    names = class_folders(root)
    for name in names:
        if not any(is_image(entry.name) for entry in files(root / name)):
            raise UserError(f"class folder {str(root / name)!r} holds no PNG, JPEG, WebP or GIF; add some or remove it")
    return names


def files(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Visible files in a folder and below.

    Raises:
        UserError: a folder that cannot be listed.
    """
    below = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif entry.is_file():
                    yield entry
    except OSError as error:
        raise UserError(f"folder {str(folder)!r} cannot be listed ({error.strerror}); check its permissions") from None
    for path in below:
        yield from files(path)


def is_image(name: str) -> bool:
    """Whether a file's extension is one of ``SUFFIXES``."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a million Paths take minutes


@dataclass(frozen=True)
class Listing:
    """The image files of a folder with one folder per class, class by class, sorted; and the files that are skipped."""

    names: Names
    """Paths below the root."""
    counts: list[int]
    """Images of each class, in the order of ``class_folders``."""
    sizes: Sequence[int]
    """Bytes of each file."""
    times: Sequence[int]
    """When each file was modified, in nanoseconds."""
    skipped: list[str]
    """Files of other extensions; ten at most."""
    num_skipped: int
    """All files of other extensions."""

    @staticmethod
    def of(root: Path) -> Listing:
        """Lists a folder; opens no file.

        Raises:
            UserError: see ``class_folders`` and ``files``.
        """
        counts: list[int] = []
        sizes, times = array("q"), array("q")
        skipped: list[str] = []
        num_skipped = 0

        def paths() -> Iterator[str]:
            nonlocal num_skipped
            for name in class_folders(root):
                top = str(root / name)
                found = []
                for entry in files(top):
                    if is_image(entry.name):
                        found.append((name + entry.path[len(top) :].replace(os.sep, "/"), entry.stat()))
                    else:
                        num_skipped += 1
                        skipped.extend([entry.path] * (len(skipped) < 10))
                found.sort(key=lambda item: item[0])
                counts.append(len(found))
                for path, stat in found:
                    sizes.append(stat.st_size)
                    times.append(stat.st_mtime_ns)
                    yield path

        return Listing(Names(paths()), counts, sizes, times, skipped, num_skipped)

    def fingerprint(self) -> str:
        """sha256 over names and sizes; a copy of the folder has the same."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(os.fsencode(f"{name}\0{size}\n"))
        return digest.hexdigest()

    def verified_as(self, size: int) -> Path:
        """The marker file whose presence says that these files, not modified since, could all be decoded."""
        digest = hashlib.sha256(f"1 {size} {MAX_PIXELS} {self.fingerprint()}".encode())
        digest.update(np.array(self.times, "<i8").tobytes())
        return cache_folder() / "verified" / digest.hexdigest()


class ImageFolder:
    """Image files in one folder per class, cropped to squares as ADM does (Dhariwal & Nichol 2021)."""

    def __init__(
        self, root: Path | str, size: int, channels: Literal[1, 3], check: Literal["full", "headers"] = "full"
    ) -> None:
        """Lists the folder; decodes nothing.

        Args:
            root: holds one folder per class; folders inside these belong to the class.
            size: side of the squares in pixels.
            channels: 3 for RGB, 1 for grey.
            check: how ``verify`` checks images that are too many to keep in memory.

        Raises:
            UserError: see ``class_names``.
        """
        self.root = Path(root).expanduser()
        class_names(self.root)
        self.size = size
        self.channels = channels
        self.check = check
        listing = Listing.of(self.root)
        self.names: Sequence[str] = listing.names
        self.labels = np.repeat(np.arange(len(listing.counts)), listing.counts)
        self.held_out = np.empty(0, np.int64)
        self.fingerprint = listing.fingerprint()
        self._verified_as = listing.verified_as(size)
        self._pixels: Pixels | None = None
        if listing.skipped:
            logger.warning(
                "%d files in %s are skipped: unsupported extension, e.g. %s",
                *(listing.num_skipped, self.root, listing.skipped[0]),
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def image(self, i: int) -> Pixels:
        """Image ``i``, [C, H, W] in 0..255.

        Raises:
            UserError: it cannot be decoded, or is larger than ``MAX_PIXELS``.
        """
        if self._pixels is not None:
            image: Pixels = self._pixels[i]
            return image
        return decode(self.root / self.names[i], self.size, self.channels)

    def verify(self) -> None:
        """Decodes every image once, and keeps them all if they fit into memory.

        If they do not fit, ``check="headers"`` reads headers only; and files that have all been decoded once are not
        decoded again while their names, sizes and times stay the same.

        Raises:
            UserError: images that cannot be decoded; names the first and counts them.
        """
        if self._pixels is not None:
            return
        budget = Budget()
        self._pixels = verified(
            (len(self), self.channels, self.size, self.size),
            lambda i: decode(self.root / self.names[i], self.size, self.channels, budget=budget),
            (lambda i: peek(self.root / self.names[i])) if self.check == "headers" else None,
            self._verified_as,
        )
