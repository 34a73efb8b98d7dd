"""EDM's and StyleGAN's data sets: images in a zip or a folder, and labels in ``dataset.json`` (Karras et al.).

``dataset.json`` holds ``{"labels": [["00000/img00000000.png", 6], ...]}``, or null in place of the list; other keys are
left alone. Paths are those of images below the folder, or in the zip.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udit.data import moments
from udit.data.config import DataInfo, DatasetJsonData
from udit.data.encoded import info_of
from udit.data.listing import Listing, is_image
from udit.data.names import Names
from udit.data.notes import Notes
from udit.data.numbering import Label, notes_on, numbered
from udit.data.sources import Labels
from udit.data.zipped import Zip
from udit.errors import UserError

NAME = "dataset.json"
SHOWN = 3
"""Names that an error repeats."""
MAX_BYTES = 2**30
"""Largest dataset.json that is read."""


def describe(data: DatasetJsonData) -> DataInfo:
    """Class names, from the labels.

    Raises:
        UserError: see ``records``.
    """
    found = records(data)
    return moments.describe(data, found) if data.encoded else info_of(data, found.classes, bool(found.classes))


def records(data: DatasetJsonData) -> JsonRecords:
    """The images of a zip or folder with their labels; the same object where it is asked for again.

    Raises:
        UserError: no such data set, one that is damaged, or images and labels that do not match.
    """
    root = data.root.expanduser()
    if root.is_dir():
        return _in_folder(root, data.classes, moments.SUFFIX if data.encoded else None)
    if not root.is_file():
        raise UserError(f"data.root is {str(root)!r} and is not there; give a zip file, or a folder with {NAME}")
    facts = root.stat()
    return _in_zip(root, facts.st_size, facts.st_mtime_ns, data.classes, moments.SUFFIX if data.encoded else None)


def _in_folder(root: Path, classes: tuple[str, ...], suffix: str | None) -> JsonRecords:
    listing = Listing.of(root, sort_classes=False, suffix=suffix)
    text = None
    if (root / NAME).is_file():
        try:
            text = (root / NAME).read_bytes() if (root / NAME).stat().st_size <= MAX_BYTES else b""
        except OSError as error:
            raise UserError(f"{root / NAME} cannot be read ({error.strerror}); check its permissions") from None
    labels, names = _labels(text, list(listing.names), classes, root)
    times = np.array(listing.times, "<i8").tobytes()
    return JsonRecords(root, listing.names, listing.sizes, labels, names, times)


@functools.lru_cache(maxsize=4)
def _in_zip(root: Path, size: int, time: int, classes: tuple[str, ...], suffix: str | None) -> JsonRecords:
    archive = Zip(root)
    every = list(archive.names)
    images = sorted((i for i, name in enumerate(every) if _is_member(name, suffix)), key=every.__getitem__)
    if not images and suffix is None and any(name.endswith(moments.SUFFIX) for name in every):
        raise UserError(f"{root} holds {moments.SUFFIX} files and no images; for EDM2's latents set data.holds=moments")
    if not images:
        raise UserError(f"{root} holds no {suffix or 'images'}; give a zip file of them with {NAME}")
    names = [every[i] for i in images]
    for earlier, name in itertools.pairwise(names):
        if earlier == name:
            raise UserError(f"{root} holds {name!r} twice; zip it again")
    text = None
    if NAME in every:
        i = every.index(NAME)
        text = archive.read(i) if archive.sizes[i] <= MAX_BYTES else b""
    labels, found = _labels(text, names, classes, root)
    return ZipRecords(archive, np.array(images), Names(names), labels, found, f"{size} {time}".encode())


def _is_member(name: str, suffix: str | None) -> bool:
    parts = name.split("/")
    return (is_image(name) if suffix is None else name.endswith(suffix)) and not any(
        part.startswith(".") or part == "__MACOSX" for part in parts
    )


def _labels(
    text: bytes | None, names: Sequence[str], classes: tuple[str, ...], root: Path
) -> tuple[Labels, tuple[str, ...]]:
    """Labels of images and class names, from the text of ``dataset.json``; None where there is none."""
    listed = _list(text, root) if text is not None else None
    if listed is None:
        return np.zeros(len(names), np.int64), ()
    there = set(names)
    absent = [name for name in listed if name not in there]
    if absent:
        raise UserError(
            f"{NAME} of {root} names {_shown(absent)}, not among its images; put them there, or mend {NAME}"
        )
    missing = [name for name in names if name not in listed]
    if missing:
        raise UserError(f"{NAME} of {root} has no label of {_shown(missing)}; add them, or remove the images")
    return numbered([listed[name] for name in names], classes, f"{NAME} of {root}")


def _list(text: bytes, root: Path) -> dict[str, Label] | None:
    """Label by path; None where the images have none."""
    rule = 'it holds {"labels": [["path of an image", number], ...]}, or null for the list'
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:80]
        raise UserError(f"{NAME} of {root} is not JSON ({detail}); {rule}") from None
    listed = content.get("labels") if isinstance(content, dict) else 0
    if listed is None:
        return None
    if isinstance(listed, dict):
        listed = list(listed.items())
    if not isinstance(listed, list):
        raise UserError(f"{NAME} of {root} is something else; {rule}")
    found: dict[str, Label] = {}
    for entry in listed:
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            raise UserError(f"{NAME} of {root} lists {str(entry)[:80]}; {rule}")
        name, label = entry[0].replace("\\", "/"), entry[1]
        if isinstance(label, list):
            raise UserError(
                f"{NAME} of {root} has {len(label)} numbers as the label of {name!r}; labels are whole numbers"
            )
        if isinstance(label, bool) or not isinstance(label, int):
            raise UserError(f"{NAME} of {root} has {label!r} as the label of {name!r}; labels are whole numbers")
        if found.setdefault(name, label) != label:
            raise UserError(f"{NAME} of {root} labels {name!r} {found[name]} and {label}; keep one of them")
    return found


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


class JsonRecords:
    """Image files of a folder, with labels of ``dataset.json``."""

    def __init__(
        self,
        root: Path,
        names: Names,
        sizes: Sequence[int] | Labels,
        labels: Labels,
        classes: tuple[str, ...],
        times: bytes,
    ) -> None:
        """Takes what was listed, and what changes when a file is written to."""
        self.root, self.labels, self.classes = root, labels, classes
        self.names: Sequence[str] = names
        self.sizes = np.array(sizes, np.int64)
        self.held_out = np.empty(0, np.int64)
        digest = hashlib.sha256(names.text.tobytes())
        for values in (names.ends, self.sizes, labels):
            digest.update(values.astype("<i8").tobytes())
        digest.update(repr(classes).encode())
        self.fingerprint = digest.hexdigest()
        self.stamp = hashlib.sha256(self.fingerprint.encode() + times).hexdigest()
        self.notes = Notes()
        self.notes.update(notes_on(labels, classes))

    def open(self, i: int) -> Path | io.BytesIO:
        """The path of image i."""
        return self.root / self.names[i]

    def called(self, i: int) -> str:
        """Its path."""
        return str(self.root / self.names[i])


class ZipRecords(JsonRecords):
    """Image files of a zip, with labels of its ``dataset.json``."""

    def __init__(
        self, archive: Zip, places: Labels, names: Names, labels: Labels, classes: tuple[str, ...], times: bytes
    ) -> None:
        """Takes the archive, and the numbers of its images."""
        super().__init__(archive.path, names, archive.sizes[places], labels, classes, times)
        self._archive, self._places = archive, places

    def open(self, i: int) -> io.BytesIO:
        """The bytes of image i."""
        return io.BytesIO(self._archive.read(int(self._places[i])))
