"""Checks a data set: lists everything that is wrong with it, and counts what it holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from udit.data import folder
from udit.data.captions import READ, captions_of, folder_captions
from udit.data.config import (
    ClipFolderData,
    DatasetJsonData,
    FolderData,
    IdxData,
    ImageFiles,
    LmdbData,
    NpzData,
    WebDatasetData,
)
from udit.data.decode import KNOWN, Budget, Header, Size, brightest, decode, peek
from udit.data.encoded import Records, verified_as
from udit.data.folder import FolderRecords
from udit.data.idx import idx_files
from udit.data.listing import Listing
from udit.data.notes import DARK, Notes, array_notes, dark
from udit.data.npz import npz_file
from udit.data.recognise import recognised
from udit.data.sources import Source
from udit.data.verify import attempts, remember
from udit.errors import UserError

UNLABELLED = "(no labels)"
"""In a class's place, where images have none."""
TEST = "test images"
"""In a class's place, of the data set's own test images."""


@dataclass
class Contents:
    """What a check has counted; complete after its last line."""

    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each class: images, and bad images."""
    formats: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Images of each (width, height)."""
    captions: int = 0
    """Texts of all images together."""
    notes: Notes = field(default_factory=Notes)
    """What is converted, left out, or probably meant otherwise, and not refused."""
    bad: int = 0
    """Images that cannot be used, and empty class folders."""


def check(
    path: Path, size: Size, contents: Contents, bits: int = 16, keys: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Checks a data set on disk, of any format.

    Args:
        path: see ``recognise.recognised``.
        size: of the square, or (height, width), that training would crop image files to.
        contents: is filled.
        bits: depth of grey in files of 16 bits, see ``decode``.
        keys: further keys of the data section, or others than those that the path suggests.

    Yields:
        One line for everything that training would refuse.

    Raises:
        UserError: there is no such data set, or unknown keys.
    """
    data = recognised(path, keys or {}, {"size": size, "bits": bits})
    if isinstance(data, NpzData):
        yield from _check_whole(lambda: npz_file(data.path, len(data.classes) or None), contents)
    elif isinstance(data, IdxData):
        yield from _check_whole(lambda: idx_files(data.root, 256), contents)
    elif data.encoded:
        yield from _check_whole(data.build, contents)
    elif isinstance(data, FolderData):
        yield from check_folder(data, contents)
    elif isinstance(data, DatasetJsonData | WebDatasetData | LmdbData):
        from udit.data import dataset_json, lsun, webdataset

        try:
            match data:
                case DatasetJsonData():
                    found: Records = dataset_json.records(data)
                case WebDatasetData():
                    found = webdataset.records(data)
                case LmdbData():
                    found = lsun.records(data)
        except UserError as error:
            contents.bad += 1
            yield str(error)
            return
        _count_captions(found, contents)
        yield from check_records(found, data, contents)
    elif isinstance(data, ClipFolderData):
        yield from _check_clips(data.build(), contents)
    else:
        yield from _check_whole(data.build, contents)


def _count_captions(found: object, contents: Contents) -> None:
    texts = captions_of(found)
    contents.captions = len(texts.texts) if texts is not None else 0


def _check_clips(source: Source, contents: Contents) -> Iterator[str]:
    """Decodes every clip; one line for each that training would refuse."""
    bad = np.zeros(len(source), bool)
    for i, found in enumerate(attempts(source.image, len(source), "checking")):
        if isinstance(found, UserError):
            bad[i] = True
            contents.bad += 1
            yield str(found)
    names = sorted({name.rpartition("/")[0] for name in source.names})
    for label, name in enumerate(names):
        of_class = source.labels == label
        contents.classes[name or UNLABELLED] = (int(of_class.sum()), int(bad[of_class].sum()))


def _check_whole(read: Callable[[], Source], contents: Contents) -> Iterator[str]:
    """Files that are usable or not as a whole."""
    try:
        source = read()
        source.verify()
    except UserError as error:
        contents.bad += 1
        yield str(error)
        return
    _count_captions(source, contents)
    held_out = np.isin(np.arange(len(source)), source.held_out)
    contents.notes.update(array_notes(source))
    counts = np.bincount(source.labels[~held_out], minlength=int(source.labels.max()) + 1)
    for label, count in enumerate(counts):
        contents.classes[str(label)] = (int(count), 0)
    if held_out.any():
        contents.classes[TEST] = (int(held_out.sum()), 0)
    *_, height, width = source.image(0).shape
    contents.sizes[width, height] = len(source)


def check_folder(data: FolderData, contents: Contents) -> Iterator[str]:
    """Decodes every image of a folder; one without images for a class, or with a list of labels that does not fit.

    Yields:
        One line for everything that training would refuse.

    Raises:
        UserError: no such folder, or no folders in it.
    """
    root = data.root.expanduser()
    if data.labels is None and data.label_by == "folder":
        listing = Listing.of(root, read=READ[data.captions] if data.captions else frozenset())
        for name, count in zip(listing.classes, listing.counts if listing.classes else (), strict=True):
            if not count:
                contents.bad += 1
                yield f"class folder {str(root / name)!r} holds no {KNOWN}; add some or remove it"
        found = FolderRecords.of(root, listing)
    else:
        try:
            found = folder.listed(data)
        except UserError as error:
            contents.bad += 1
            yield str(error)
            return
    if data.captions:
        try:
            texts = folder_captions(root, found.names, data.captions)
        except UserError as error:
            contents.bad += 1
            yield str(error)
        else:
            contents.captions = len(texts.texts)
    yield from check_records(found, data, contents)


def check_records(records: Records, data: ImageFiles, contents: Contents) -> Iterator[str]:
    """Decodes every image file of a data set.

    Args:
        records: the files.
        data: says how they are cropped.
        contents: is filled.

    Yields:
        One line for every image that training would refuse.
    """
    labels, names = records.labels, records.classes
    tested = np.isin(np.arange(len(labels)), records.held_out)
    bad = np.zeros(len(labels), bool)
    budget = Budget()

    deep: dict[int, int] = {}

    def read(i: int) -> tuple[Header, int | None]:
        file, name = records.open(i), records.called(i)
        header = peek(file, name)
        bright = decode(file, data.shape, 3, name, budget, data.bits).max() >= DARK
        return header, None if bright and not header.deep else brightest(file, name)

    for i, found in enumerate(attempts(read, len(labels), "checking")):
        if isinstance(found, UserError):
            bad[i] = True
            contents.bad += 1
            yield str(found)
        else:
            header, most = found
            path = repr(records.called(i))
            _count(contents, header, path, data.deep)
            if header.deep and most is not None:
                deep[i] = most
            elif most is not None and (darkness := dark(most)):
                contents.notes.add(darkness, path)
    _tell_of_depth(records, deep, contents.notes, data.bits)
    contents.notes.update(records.notes)
    _find_copies(records, contents)
    for label, name in enumerate(names or [UNLABELLED]):
        of_class = (labels == label) & ~tested
        contents.classes[name] = (int(of_class.sum()), int(bad[of_class].sum()))
    if tested.any():
        contents.classes[TEST] = (int(tested.sum()), int(bad[tested].sum()))
    if not contents.bad:
        remember(verified_as(records, data))


def _count(contents: Contents, header: Header, path: str, deep: bool) -> None:
    contents.formats[header.format] += 1
    contents.sizes[header.width, header.height] += 1
    if header.mode == "CMYK":
        contents.notes.add("CMYK, converted to RGB without its colour profile", path)
    if (header.deep or header.deep_colour) and not deep:
        contents.notes.add("16-bit, reduced to 8 bits", path)
    if header.transparent:
        contents.notes.add("transparent, composited on white", path)
    if header.animated:
        contents.notes.add("animated, reduced to the first frame", path)
    if header.turned:
        contents.notes.add("rotated upright by EXIF", path)


def _tell_of_depth(records: Records, deep: dict[int, int], notes: Notes, bits: int) -> None:
    """Notes 16-bit files of fewer bits, or of more, than ``bits``: of all together, since one depth is set for all.

    Where those are right, the ones that are black.

    Args:
        records: the files.
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
            notes.add(what, repr(records.called(i)))


def _find_copies(records: Records, contents: Contents) -> None:
    """Notes files with the same bytes as an earlier one; only files of equal length are read."""
    sizes = np.array(records.sizes, np.int64)
    _, places, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    seen: dict[bytes, int] = {}
    for i in np.flatnonzero(counts[places] > 1).tolist():
        try:
            file = records.open(i)
            if isinstance(file, Path):
                with file.open("rb") as stream:
                    key = hashlib.file_digest(stream, "blake2b").digest()[:16]
            else:
                key = hashlib.blake2b(file.read()).digest()[:16]
        except (OSError, UserError):
            continue  # has been reported
        first = seen.setdefault(key, i)
        if first != i:
            contents.notes.add("copy of another file", f"{records.called(i)!r} of {records.called(first)!r}")
