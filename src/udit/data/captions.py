"""Texts of images: one or several each, from files beside the images, from a table of a folder, or from a column."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from udit.data.listing import files, may_hold_labels
from udit.data.names import Names
from udit.data.sources import Labels
from udit.errors import UserError

TABLES = ("metadata.jsonl", "metadata.csv")
"""Files that name images and their texts, as `datasets` reads them."""
READ = {"files": frozenset({".txt"}), "metadata": frozenset({".jsonl", ".csv"})}
"""Extensions of the files that hold captions, by ``data.captions``."""


class Captions:
    """One or several texts of each image, in arrays whose memory forked workers share."""

    def __init__(self, texts: Names, ends: Labels) -> None:
        """Takes all texts in order, and the number of texts up to and with each image, [N + 1] from 0."""
        self.texts = texts
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]]) -> Captions:
        """The captions of images, each with at least one text."""
        ends = [0]

        def each() -> Iterator[str]:
            for some in texts:
                ends.append(ends[-1] + len(some))
                yield from some

        return cls(Names(each()), np.array(ends, np.int64))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> list[str]:
        """The texts of image ``i``."""
        return self.texts[int(self.ends[i]) : int(self.ends[i + 1])]

    def chosen(self, i: int, number: int) -> str:
        """One of the texts of image ``i``: that of a number, modulo theirs."""
        start, stop = int(self.ends[i]), int(self.ends[i + 1])
        return self.texts[start + number % (stop - start)]

    def distinct(self) -> list[str]:
        """All different texts, sorted."""
        return sorted(set(self.texts))

    def digest(self) -> str:
        """sha256 over all texts, in hex."""
        return hashlib.sha256(self.texts.text.tobytes() + self.ends.astype("<i8").tobytes()).hexdigest()


@runtime_checkable
class Captioned(Protocol):
    """A source whose images have texts."""

    captions: Captions


def captions_of(source: object) -> Captions | None:
    """The captions of a source, or None where it has none."""
    return source.captions if isinstance(source, Captioned) else None


def folder_captions(root: Path, names: Sequence[str], how: Literal["files", "metadata"]) -> Captions:
    """The captions of the images in a folder.

    Args:
        root: the data set's folder.
        names: paths of the images below it.
        how: ``files``: a .txt beside each image, one text a line; ``metadata``: a table ``TABLES`` in ``root``.

    Raises:
        UserError: an image without a text, a text without its image, or a file that cannot be read; names the first.
    """
    return Captions.of(_beside(root, names) if how == "files" else _listed(root, names))


def _beside(root: Path, names: Sequence[str]) -> Iterator[list[str]]:
    stems = {os.path.splitext(name)[0] for name in names}  # noqa: PTH122 - a million Paths take minutes
    for entry in files(root, links=True):
        stem, extension = os.path.splitext(os.path.relpath(entry.path, root).replace(os.sep, "/"))  # noqa: PTH122
        if extension.lower() == ".txt" and may_hold_labels(entry.name) and stem not in stems:
            raise UserError(
                f"{entry.path} has no image beside it ({Path(stem).name}.png, .jpg, .webp or .gif); add the image, or "
                "remove the text"
            )
    for name in names:
        path = root / f"{os.path.splitext(name)[0]}.txt"  # noqa: PTH122
        lines = [" ".join(line.split()) for line in _text(path, f"the image {str(root / name)!r}").splitlines()]
        texts = [line for line in lines if line]
        if not texts:
            raise UserError(f"{path} holds no text; write a caption into it, one a line where there are several")
        yield texts


def _text(path: Path, wanted_by: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{wanted_by} has no caption; write it into {path.name} beside it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None


def _listed(root: Path, names: Sequence[str]) -> Iterator[list[str]]:
    there = [root / name for name in TABLES if (root / name).is_file()]
    if len(there) != 1:
        held = "both metadata.jsonl and metadata.csv" if there else "neither metadata.jsonl nor metadata.csv"
        raise UserError(f"data.captions is metadata and {root} holds {held}; one of them lists file_name and text")
    (path,) = there
    read = _jsonl if path.suffix == ".jsonl" else _csv
    found: dict[str, list[str]] = {}
    for where, row in read(path, _text(path, str(root))):
        name, texts = row.get("file_name"), row.get("text")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(name, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UserError(f"{where} lacks file_name or text; a row names an image and its text, or a list of texts")
        name = os.path.normpath(name).replace(os.sep, "/")
        plain = [text for text in (" ".join(each.split()) for each in texts) if text]
        if not plain:
            raise UserError(f"{where} has an empty text; write a caption, or remove the row and its image")
        found.setdefault(name, []).extend(plain)
    missing = found.keys() - set(names)
    if missing:
        first = min(missing)
        what = "is no image there" if (root / first).exists() else "is not there"
        raise UserError(f"{path} names {first!r}, which {what}; put it there, or remove the row")
    for name in names:
        if name not in found:
            raise UserError(f"{path} has no row of the image {name!r}; add its text, or move the image elsewhere")
        yield found[name]


def _jsonl(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{where} is no JSON object; write one a line, with file_name and text")
        yield where, row


def _csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    if {"file_name", "text"} - set(reader.fieldnames or ()):
        raise UserError(f"{path} has columns {list(reader.fieldnames or ())}; it needs file_name and text")
    try:
        for row in reader:
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, cannot be read ({error}); write it as CSV") from None


def column_captions(column: str, values: Iterable[Any]) -> Captions:
    """The captions in a column of strings, or of lists of strings.

    Args:
        column: what the error calls it.
        values: of every image.

    Raises:
        UserError: an image without a text; says which.
    """

    def each() -> Iterator[list[str]]:
        for i, value in enumerate(values):
            texts = [value] if isinstance(value, str) else value
            known = isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)
            plain = [text for text in (" ".join(each.split()) for each in texts or ()) if text] if known else []
            if not plain:
                raise UserError(f"column {column} has no text in row {i}; it needs a caption, or a list of them")
            yield plain

    return Captions.of(each())
