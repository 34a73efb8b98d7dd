"""Lists the image files of folders, and tells what is left out; one list for training, checking and scoring."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udit.data.decode import KNOWN
from udit.data.names import Names
from udit.data.notes import Notes
from udit.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".mpo", ".webp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"})
"""Extensions of image files, in lower case."""
LEFTOVERS = frozenset(
    {
        *("__macosx", "network trash folder", "temporary items"),  # macOS, and its zip files
        *("@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "@snapshot"),  # Synology, QNAP
        *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
        *("lost+found", "__pycache__"),
    }
)
"""Names of folders, in lower case, that systems, network storage and programs leave; no one means them as a class."""
PART = re.compile(
    r"(train|training|val|valid|validation|test|testing|dev|eval|evaluation)([-_ ]?(\d+|set|images?|data))?"
)
"""Names of parts of a data set, in lower case: train, val2017, test_images."""
UNSORTED = frozenset({"images", "image", "img", "imgs", "photos", "jpegimages"})
"""Names of folders, in lower case, that say nothing of a class."""
LABEL_FILES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".parquet", ".xlsx", ".txt"})
"""Extensions of files that often hold labels, boxes or captions."""
HIDDEN = "hidden images are left out"
ABOUT = ("readme", "license", "licence", "citation", "changelog", "notice")
"""Beginnings of names, in lower case, of text files that hold no labels."""


def is_image(name: str) -> bool:
    """Whether a file's extension is one of ``SUFFIXES``."""
    return _extension(name) in SUFFIXES


def class_folders(root: Path) -> list[str]:
    """The folders in ``root`` that are classes, sorted: neither hidden nor of ``LEFTOVERS``.

    None, where ``root`` holds images and no such folder: they have no labels.

    Raises:
        UserError: no such folder, or neither folders nor images in it.
    """
    return _classes(root, Notes())


def files(folder: Path | str, notes: Notes | None = None, links: bool = False) -> Iterator[os.DirEntry[str]]:
    """Visible files in a folder and below, without those in ``LEFTOVERS``.

    Args:
        folder: where to look.
        notes: is told of images that are hidden or in ``LEFTOVERS``, and of links that lead nowhere.
        links: follows links to folders that lie in the folder itself, as class folders may.

    Raises:
        UserError: a folder that cannot be listed.
    """
    below = []
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=links):
            if _left_out(entry.name):
                _tell_of_leftover(entry, notes)
            else:
                below.append(entry.path)
        elif entry.name.startswith("."):
            if notes is not None and is_image(entry.name):
                notes.add(HIDDEN, repr(entry.path))
        elif entry.is_file():
            yield entry
        elif notes is not None and entry.is_symlink():
            what = "links to folders are not followed" if entry.is_dir() else "links that lead nowhere"
            notes.add(f"{what}; put the images there, or remove them", repr(entry.path), "link")
    for path in below:
        yield from files(path, notes)


def image_files(folder: Path, notes: Notes | None = None) -> list[Path]:
    """All images in a folder and below, sorted by path: those that training takes, and those in the folder itself.

    Raises:
        UserError: a folder that cannot be listed.
    """
    return sorted(Path(entry.path) for entry in files(folder, notes, links=True) if is_image(entry.name))


@dataclass(frozen=True)
class Listing:
    """The image files of a folder with one folder per class, class by class, sorted; or of one without labels."""

    classes: list[str]
    """Names of the class folders; empty where the images lie in the folder itself and have no labels."""
    names: Names
    """Paths below the root."""
    counts: list[int]
    """Images of each class; of all, where there are no classes."""
    sizes: Sequence[int]
    """Bytes of each file."""
    times: Sequence[int]
    """When each file was modified, in nanoseconds."""
    notes: Notes
    """What is left out, and what looks as if something else was meant."""

    @staticmethod
    def of(
        root: Path, *, sort_classes: bool = True, suffix: str | None = None, read: frozenset[str] = frozenset()
    ) -> Listing:
        """Lists a folder; opens no file.

        Args:
            root: the folder.
            sort_classes: takes its folders for classes; else all images below it have no labels.
            suffix: of the files that are listed in place of images.
            read: extensions of files that are read otherwise, of which there is nothing to tell.

        Raises:
            UserError: see ``class_folders`` and ``files``.
        """
        notes = Notes()
        if sort_classes:
            classes = _classes(root, notes, read)
        elif root.is_dir():
            classes = []
        else:
            raise UserError(f"data.root is {str(root)!r}, no folder; give the one that holds the images")
        counts: list[int] = []
        deeper: list[Counter[str]] = []
        sizes, times = array("q"), array("q")

        def paths() -> Iterator[str]:
            for name in classes or ["."]:
                top = str(root / name)
                found = []
                inside: Counter[str] = Counter()
                for entry in files(top, notes):
                    if not (is_image(entry.name) if suffix is None else entry.name.endswith(suffix)):
                        if _extension(entry.name) not in read:
                            notes.add("skipped: unsupported extension", repr(entry.path))
                        continue
                    path = entry.path[len(top) + 1 :].replace(os.sep, "/")
                    inside[path.rpartition("/")[0]] += 1
                    found.append((f"{name}/{path}" if classes else path, entry.stat()))
                found.sort(key=lambda item: item[0])
                counts.append(len(found))
                deeper.append(inside)
                for path, stat in found:
                    sizes.append(stat.st_size)
                    times.append(stat.st_mtime_ns)
                    yield path

        names = Names(paths())
        if not sort_classes and not len(names):
            raise UserError(f"data.root {str(root)!r} holds no {suffix or 'images'}; give the folder that does")
        if classes:
            _tell_of_layout(root, classes, deeper, notes)
        return Listing(classes, names, counts, sizes, times, notes)

    def fingerprint(self) -> str:
        """sha256 over names and sizes; a copy of the folder has the same."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(os.fsencode(f"{name}\0{size}\n"))
        return digest.hexdigest()

    def stamp(self, fingerprint: str) -> str:
        """sha256 over a fingerprint and the files' times."""
        return hashlib.sha256(fingerprint.encode() + np.array(self.times, "<i8").tobytes()).hexdigest()

    def part(self, kept: Sequence[int]) -> Listing:
        """Some of the files, of a listing without classes."""
        assert not self.classes
        names = Names(self.names[i] for i in kept)
        sizes, times = ([values[i] for i in kept] for values in (self.sizes, self.times))
        return Listing([], names, [len(kept)], array("q", sizes), array("q", times), self.notes)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"folder {str(folder)!r} cannot be listed ({error.strerror}); check its permissions") from None


def _left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFTOVERS


def _tell_of_leftover(entry: os.DirEntry[str], notes: Notes | None) -> None:
    """Notes a folder that is left out, if it holds images."""
    if notes is not None and _holds_images(entry.path):
        what = "hidden folders, and those that systems and programs make, are left out; rename one that is a class"
        notes.add(what, repr(entry.path), "folder")


def _holds_images(folder: str) -> bool:
    for _, folders, names in os.walk(folder):
        if any(is_image(name) for name in names):
            return True
        folders.sort()
    return False


def _classes(root: Path, notes: Notes, read: frozenset[str] = frozenset()) -> list[str]:
    if not root.is_dir():
        raise UserError(f"data.root is {str(root)!r}, no folder; give one that holds one folder of images per class")
    try:
        entries = _entries(root)
    except UserError as error:
        raise UserError(f"data.root: {error}") from None
    names, loose = [], []
    for entry in entries:
        if entry.is_dir():
            if _left_out(entry.name):
                _tell_of_leftover(entry, notes)
            else:
                names.append(entry.name)
        elif entry.is_symlink() and not entry.is_file():
            notes.add("links that lead nowhere; put the images there, or remove them", repr(entry.path), "link")
        elif is_image(entry.name):
            if entry.name.startswith("."):
                notes.add(HIDDEN, repr(entry.path))
            else:
                loose.append(entry.path)
        elif not entry.name.startswith(".") and may_hold_labels(entry.name) and _extension(entry.name) not in read:
            notes.add("label files are not read, a class is a folder; data.labels=FILE reads one", repr(entry.path))
    others = Counter(_extension(entry.name) for entry in entries if entry.is_file() and "." in entry.name[1:])
    if not names and not loose and others:
        found = ", ".join(f"{count:,} {end}" for end, count in others.most_common(3))
        raise UserError(f"data.root {str(root)!r} holds no {KNOWN}, but {found}; convert them, or give another folder")
    if not names and not loose:
        raise UserError(
            f"data.root {str(root)!r} holds no class folders; put the images of each class into a folder of its own, "
            "or images without labels into it"
        )
    for path in loose if names else ():
        notes.add(f"images in {str(root)!r} itself belong to no class and are left out", repr(path))
    return names


def may_hold_labels(name: str) -> bool:
    """Whether a file often holds labels or captions, by its name."""
    lower = name.lower()
    return _extension(lower) in LABEL_FILES and not lower.startswith(ABOUT)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million Paths take minutes


def _tell_of_layout(root: Path, classes: list[str], deeper: list[Counter[str]], notes: Notes) -> None:
    """Notes class folders that look as if they were none.

    Args:
        root: the data set's folder.
        classes: names of the class folders.
        deeper: of each class, images by the folder inside it that holds them, as a path; "" is the class folder.
        notes: is filled.
    """
    # of each class, its folders in order; "" comes first and stands only beside others
    folders = [sorted(inside) if len(inside) > 1 or "" not in inside else [] for inside in deeper]
    parts = [i for i, name in enumerate(classes) if _is_part(name)]
    sorted_parts = [i for i in parts if 2 * deeper[i][""] < sum(deeper[i].values())]
    if parts and sorted_parts == parts:
        names = ", ".join(repr(classes[i]) for i in parts[:3])
        inner = {folder.partition("/")[0] for i in parts for folder in folders[i]} - {""}
        if all(folder.lower() in UNSORTED for folder in inner):
            notes.add(
                f"{names} are classes here and look like parts of a data set without class folders; sort the images "
                "into one folder for each class"
            )
        else:
            notes.add(
                f"{names} are classes here and look like parts of a data set, whose folders are the classes; give "
                f"data.root={root / classes[parts[0]]}"
            )
    elif parts and len(parts) == len(classes):
        names = ", ".join(map(repr, classes[:3]))
        notes.add(f"the only classes, {names}, have names of parts of a data set; a class is a folder")
    elif len(classes) == 1 and (inside := _below(folders[0])):
        place, inner_names = inside
        shown = ", ".join(map(repr, inner_names[:3])) + (" ..." if len(inner_names) > 3 else "")
        notes.add(
            f"all images are of one class, {classes[0]!r}, whose folders {shown} look like the classes; if so, give "
            f"data.root={root / classes[0] / place}"
        )
    else:
        for name, inside_it in zip(classes, folders, strict=True):
            if not inside_it:
                continue
            if inside_it[0] == "":
                what = "images in folders inside a class folder belong to the class"
                notes.add(what, repr(str(root / name / inside_it[1])))
            elif len(inside_it) > 1 and all(_is_part(folder) for folder in inside_it):
                what = (
                    "folders named like parts of a data set, inside class folders, are read as one; if they are, move "
                    "the test images elsewhere"
                )
                notes.add(what, repr(str(root / name)), "class")
    plain = [_plain(name) for name in classes]
    often = Counter(plain)
    for name, simple in zip(classes, plain, strict=True) if len(often) < len(plain) else ():
        if often[simple] > 1:
            alike = "class folders whose names differ in case, spaces or composed letters only"
            notes.add(alike, repr(str(root / name)), "folder")


def _is_part(name: str) -> bool:
    return PART.fullmatch(name.lower()) is not None


def _below(folders: Sequence[str]) -> tuple[str, list[str]] | None:
    """Where folders part, as a path, and the names of those that stand there; None if they do not."""
    if len(folders) < 2 or "" in folders:
        return None
    place = os.path.commonpath(folders)
    if place in folders:
        return None
    start = len(place) + 1 if place else 0
    return place, sorted({folder[start:].partition("/")[0] for folder in folders})


def _plain(name: str) -> str:
    composed = name if name.isascii() else unicodedata.normalize("NFC", name)
    return " ".join(composed.casefold().replace("_", " ").split())
