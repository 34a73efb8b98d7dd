"""Folders of image files: one folder per class, without labels, or with a list of labels; with any number of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udit.data.captions import READ, Captions, folder_captions
from udit.data.config import DataInfo, FolderData
from udit.data.decode import KNOWN
from udit.data.encoded import info_of
from udit.data.label_list import digest_of, read_list
from udit.data.listing import Listing, class_folders, files, is_image
from udit.data.numbering import Label, notes_on, numbered
from udit.data.sources import Labels
from udit.errors import UserError

SHOWN = 3
"""Names that an error repeats."""


def describe(data: FolderData) -> DataInfo:
    """Class names from the names of the folders, or a list of labels; images in the folder itself have no labels.

    Raises:
        UserError: see ``class_names`` and ``records``.
    """
    if data.labels is None and data.label_by == "folder":
        names = tuple(class_names(data.root))
    else:
        names = records(data).classes
    return info_of(data, names, bool(names))


def class_names(root: Path | str) -> list[str]:
    """The names of the class folders in ``root``, sorted; hidden ones are skipped. None, if its images have no labels.

    Raises:
        UserError: no such folder, nothing in it, or a class folder without images.
    """
    root = Path(root).expanduser()
    names = class_folders(root)
    for name in names:
        if not any(is_image(entry.name) for entry in files(root / name)):
            raise UserError(f"class folder {str(root / name)!r} holds no {KNOWN}; add some or remove it")
    return names


def records(data: FolderData) -> FolderRecords:
    """The listed image files, with their texts where they have some.

    Raises:
        UserError: see ``class_names`` and ``folder_captions``, or a list of labels that does not fit the folder.
    """
    found = listed(data)
    if data.captions:
        found.captions = folder_captions(found.root, found.names, data.captions)
        found.fingerprint = hashlib.sha256(f"{found.fingerprint} {found.captions.digest()}".encode()).hexdigest()
    return found


def listed(data: FolderData) -> FolderRecords:
    """The images with their labels, without their captions.

    Raises:
        UserError: see ``records``.
    """
    root = data.root.expanduser()
    read = READ[data.captions] if data.captions else frozenset()
    if data.labels is not None:
        return _by_list(data, root, data.labels.expanduser(), read)
    if data.label_by == "folder":
        class_names(root)
        return FolderRecords.of(root, Listing.of(root, read=read))
    listing = Listing.of(root, sort_classes=False, read=read)
    if data.label_by == "none":
        return FolderRecords.of(root, listing)
    found: list[Label] = [name.rpartition("/")[0] or None for name in listing.names]
    labels, classes = numbered_folders(found, root)
    return FolderRecords(root, listing, labels, classes, listing.fingerprint())


def numbered_folders(found: list[Label], root: Path) -> tuple[Labels, tuple[str, ...]]:
    """Paths of folders as labels, numbered in sorted order; a number for a name is a name like others."""
    names = sorted({str(label) for label in found if label is not None})
    if not names:
        raise UserError(f"{str(root)!r} holds no folders of images; leave data.label_by out")
    if None in found:
        raise UserError(
            f"images in {str(root)!r} itself lie in no folder that could be their class; move them, or remove them"
        )
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[str(label)] for label in found], np.int64), tuple(names)


def _by_list(data: FolderData, root: Path, path: Path, read: frozenset[str]) -> FolderRecords:
    """The images of a folder that a list of labels names, in the order of their paths.

    Raises:
        UserError: an entry whose image is not there or comes twice; or images without an entry, which are named.
    """
    if not path.is_absolute() and not path.exists():
        path = root / path
    listing = Listing.of(root, sort_classes=False, read=read)
    place = {name: i for i, name in enumerate(listing.names)}
    bare = {os.path.splitext(name)[0]: i for name, i in place.items()}  # noqa: PTH122 - ids without an extension
    found: list[Label] = [None] * len(place)
    seen = np.zeros(len(place), np.int64)
    absent: list[str] = []
    for number, file, label in read_list(data, path):
        name = os.path.normpath(file).replace(os.sep, "/")
        i = place.get(name, bare.get(name))
        if i is None:
            absent.append(f"{file!r} (line {number})")
        elif seen[i]:
            raise UserError(
                f"{path}, line {number}: {file!r} is listed twice, first in line {seen[i]}; keep one of them"
            )
        else:
            found[i], seen[i] = label, number
    if absent:
        shown = ", ".join(absent[:SHOWN]) + (f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else "")
        raise UserError(
            f"{path} names images that are not in {str(root)!r}: {shown}; put them there, or leave them out"
        )
    left = np.flatnonzero(seen == 0)
    for i in left[:SHOWN].tolist():
        listing.notes.add(f"images without a line in {str(path)!r} are left out", repr(listing.names[i]))
    if len(left) > SHOWN:
        listing.notes.add(f"images without a line in {str(path)!r} are left out", count=len(left) - SHOWN)
    kept = np.flatnonzero(seen)
    if len(left):
        listing = listing.part(kept.tolist())
    labels, classes = numbered([found[i] for i in kept], data.classes, str(path))
    listing.notes.update(notes_on(labels, classes))
    digest = hashlib.sha256(f"{listing.fingerprint()} {digest_of(path)}".encode()).hexdigest()
    return FolderRecords(root, listing, labels, classes, digest)


class FolderRecords:
    """Image files of a folder."""

    captions: Captions
    """Of each image; only there where the data set has texts."""

    def __init__(
        self, root: Path, listing: Listing, labels: Labels, classes: tuple[str, ...], fingerprint: str
    ) -> None:
        self.root = root
        self.names: Sequence[str] = listing.names
        self.labels, self.classes = labels, classes
        self.sizes = np.array(listing.sizes, np.int64)
        self.held_out = np.empty(0, np.int64)
        self.fingerprint = fingerprint
        self.stamp = listing.stamp(fingerprint)
        self.notes = listing.notes

    @classmethod
    def of(cls, root: Path, listing: Listing) -> FolderRecords:
        """Of a listing that is sorted by classes, or without labels: then all images have label 0."""
        labels = np.repeat(np.arange(len(listing.counts)), listing.counts)
        return cls(root, listing, labels, tuple(listing.classes), listing.fingerprint())

    def open(self, i: int) -> Path:
        """The path of image i."""
        return self.root / self.names[i]

    def called(self, i: int) -> str:
        """Its path."""
        return str(self.open(i))
