"""Folders of image files, one folder per class or without labels; with any number of files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from udit.data.captions import READ, folder_captions
from udit.data.config import DataInfo, FolderData
from udit.data.decode import Budget, decode, peek
from udit.data.listing import Listing, class_folders, files, is_image
from udit.data.sources import Pixels
from udit.data.verify import verified
from udit.errors import UserError


def describe(data: FolderData) -> DataInfo:
    """Class names from the names of the folders; images that lie in the folder itself have no labels.

    Raises:
        UserError: see ``class_names``.
    """
    names = tuple(class_names(data.root))
    return DataInfo(
        channels=data.channels,
        height=data.size,
        width=data.size,
        id2label=names,
        labelled=bool(names),
        captioned=data.captioned,
    )


def class_names(root: Path | str) -> list[str]:
    """The names of the class folders in ``root``, sorted; hidden ones are skipped. None, if its images have no labels.

    Raises:
        UserError: no such folder, nothing in it, or a class folder without images.
    """
    root = Path(root).expanduser()
    names = class_folders(root)
    for name in names:
        if not any(is_image(entry.name) for entry in files(root / name)):
            raise UserError(f"class folder {str(root / name)!r} holds no PNG, JPEG, WebP or GIF; add some or remove it")
    return names


class ImageFolder:
    """Image files in one folder per class, cropped to squares as ADM does (Dhariwal & Nichol 2021).

    Those of a folder without class folders all have label 0, which an unconditional model does not see.
    """

    def __init__(
        self,
        root: Path | str,
        size: int,
        channels: Literal[1, 3],
        check: Literal["full", "headers"] = "full",
        bits: int = 16,
        captions: Literal["files", "metadata"] | None = None,
    ) -> None:
        """Lists the folder; decodes nothing.

        Args:
            root: holds one folder per class, and folders inside these belong to the class; or images without labels.
            size: side of the squares in pixels.
            channels: 3 for RGB, 1 for grey.
            check: how ``verify`` checks images that are too many to keep in memory.
            bits: see ``decode``.
            captions: where the images' texts are, see ``folder_captions``; None where they have none.

        Raises:
            UserError: see ``class_names`` and ``folder_captions``.
        """
        self.root = Path(root).expanduser()
        class_names(self.root)
        self.size = size
        self.channels = channels
        self.check = check
        self.bits = bits
        listing = Listing.of(self.root, READ[captions] if captions else frozenset())
        self.names: Sequence[str] = listing.names
        self.labels = np.repeat(np.arange(len(listing.counts)), listing.counts)
        self.held_out = np.empty(0, np.int64)
        self.fingerprint = listing.fingerprint()
        if captions:
            self.captions = folder_captions(self.root, listing.names, captions)
            self.fingerprint = hashlib.sha256(f"{self.fingerprint} {self.captions.digest()}".encode()).hexdigest()
        self._verified_as = listing.verified_as(size)
        self._pixels: Pixels | None = None
        listing.notes.warn()

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
        return decode(self.root / self.names[i], self.size, self.channels, bits=self.bits)

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
            lambda i: decode(self.root / self.names[i], self.size, self.channels, budget=budget, bits=self.bits),
            (lambda i: peek(self.root / self.names[i])) if self.check == "headers" else None,
            self._verified_as,
        )
