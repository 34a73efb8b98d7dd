"""Checks a data set: lists everything that is wrong with it, and counts what it holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from udit.data.decode import Budget, Header, brightest, decode, peek
from udit.data.idx import idx_files
from udit.data.listing import Listing
from udit.data.notes import DARK, Notes, array_notes, dark
from udit.data.npz import npz_file
from udit.data.sources import InMemory
from udit.data.verify import attempts, remember
from udit.errors import UserError

UNLABELLED = "(no labels)"
"""In a class's place, where images have none."""


@dataclass
class Contents:
    """What a check has counted; complete after its last line."""

    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each class: images, and bad images."""
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images of each (width, height)."""
    notes: Notes = field(default_factory=Notes)
    """What is converted, left out, or probably meant otherwise, and not refused."""
    bad: int = 0
    """Images that cannot be used, and empty class folders."""


def check(path: Path, size: int, contents: Contents, bits: int = 16) -> Iterator[str]:
    """Checks a data set on disk, of any format.

    Args:
        path: a folder that holds one folder per class, a folder of IDX files, or an ``.npz`` file.
        size: side of the squares that training would crop the images of a folder to.
        contents: is filled.
        bits: depth of grey in files of 16 bits, see ``decode``.

    Yields:
        One line for everything that training would refuse.

    Raises:
        UserError: there is no such data set.
    """
    if path.suffix == ".npz":
        yield from _check_whole(lambda: npz_file(path), contents)
    elif any(path.glob("*-ubyte*")):
        yield from _check_whole(lambda: idx_files(path, 256), contents)
    else:
        yield from check_folder(path, size, contents, bits)


def _check_whole(read: Callable[[], InMemory], contents: Contents) -> Iterator[str]:
    """Files that are usable or not as a whole."""
    try:
        source = read()
    except UserError as error:
        contents.bad += 1
        yield str(error)
        return
    held_out = np.isin(np.arange(len(source)), source.held_out)
    contents.notes.update(array_notes(source))
    counts = np.bincount(source.labels[~held_out], minlength=int(source.labels.max()) + 1)
    for label, count in enumerate(counts):
        contents.classes[str(label)] = (int(count), 0)
    if held_out.any():
        contents.classes["test images"] = (int(held_out.sum()), 0)
    contents.sizes[source.pixels.shape[3], source.pixels.shape[2]] = len(source)


def check_folder(root: Path, size: int, contents: Contents, bits: int = 16) -> Iterator[str]:
    """Decodes every image of a folder that holds one folder per class.

    Args:
        root: the folder.
        size: side of the squares that training would crop to.
        contents: is filled.
        bits: depth of grey in files of 16 bits, see ``decode``.

    Yields:
        One line for everything that training would refuse.

    Raises:
        UserError: no such folder, or no folders in it.
    """
    listing = Listing.of(root)
    names = listing.classes
    labels = np.repeat(np.arange(len(listing.counts)), listing.counts)
    bad = np.zeros(len(listing.counts), int)
    for name, count in zip(names, listing.counts if names else (), strict=True):
        if not count:
            contents.bad += 1
            yield f"class folder {str(root / name)!r} holds no PNG, JPEG, WebP or GIF; add some or remove it"
    budget = Budget()

    deep: dict[int, int] = {}

    def read(i: int) -> tuple[Header, int | None]:
        path = root / listing.names[i]
        header = peek(path)
        bright = decode(path, size, 3, budget=budget, bits=bits).max() >= DARK
        return header, None if bright and not header.deep else brightest(path)

    for i, found in enumerate(attempts(read, len(labels), "checking")):
        if isinstance(found, UserError):
            bad[labels[i]] += 1
            contents.bad += 1
            yield str(found)
        else:
            header, most = found
            path = repr(str(root / listing.names[i]))
            _count(contents, header, path)
            if header.deep and most is not None:
                deep[i] = most
            elif most is not None and (darkness := dark(most)):
                contents.notes.add(darkness, path)
    _tell_of_depth(root, listing, deep, contents.notes, bits)
    contents.notes.update(listing.notes)
    _find_copies(root, listing, contents)
    contents.classes = {
        name: (count, int(wrong)) for name, count, wrong in zip(names or [UNLABELLED], listing.counts, bad, strict=True)
    }
    if not contents.bad:
        remember(listing.verified_as(size))


def _count(contents: Contents, header: Header, path: str) -> None:
    contents.formats[header.format] += 1
    contents.sizes[header.width, header.height] += 1
    if header.mode == "CMYK":
        contents.notes.add("CMYK, converted to RGB without its colour profile", path)
    if header.deep:
        contents.notes.add("16-bit, reduced to 8 bits", path)
    if header.transparent:
        contents.notes.add("transparent, composited on white", path)
    if header.animated:
        contents.notes.add("animated, reduced to the first frame", path)
    if header.turned:
        contents.notes.add("rotated upright by EXIF", path)


def _tell_of_depth(root: Path, listing: Listing, deep: dict[int, int], notes: Notes, bits: int) -> None:
    """Notes 16-bit files of fewer bits, or of more, than ``bits``: of all together, since one depth is set for all.

    Where those are right, the ones that are black.

    Args:
        root: the data set's folder.
        listing: its files.
        deep: the largest value of each 16-bit file, by its number.
        notes: is filled.
        bits: that they are said to hold.
    """
    top, white = max(deep.values(), default=0), 2**bits - 1
    few = None
    right = max(8, top.bit_length())
    if top > white:
        few = f"too bright for {bits} bits: the largest value of all is {top}; set data.bits={right}"
    elif top > 1 and right < bits:
        how = "nearly black" if top * 255 < DARK * white else "dark"
        few = f"{how}: the largest value of all 16-bit files is {top} of {white}; set data.bits={right}"
    for i, most in deep.items():
        if what := few or dark(most, white):
            notes.add(what, repr(str(root / listing.names[i])))


def _find_copies(root: Path, listing: Listing, contents: Contents) -> None:
    """Notes files with the same bytes as an earlier one; only files of equal length are read."""
    sizes = np.array(listing.sizes, np.int64)
    _, places, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    seen: dict[bytes, int] = {}
    for i in np.flatnonzero(counts[places] > 1).tolist():
        path = root / listing.names[i]
        try:
            with path.open("rb") as stream:
                key = hashlib.file_digest(stream, "blake2b").digest()[:16]
        except OSError:
            continue  # has been reported
        first = seen.setdefault(key, i)
        if first != i:
            contents.notes.add("copy of another file", f"{str(path)!r} of {str(root / listing.names[first])!r}")
