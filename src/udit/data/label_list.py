"""A CSV, TSV or JSONL file that gives images of a folder their labels."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udit.data.config import FolderData
from udit.data.numbering import Label
from udit.errors import UserError, nearest

FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path", "image_id", "id")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "label_id", "class_id")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
REAL = re.compile(r"-?\d+\.\d*")
"""A number with a point: pandas writes whole ones so where one is missing."""
MAX_BYTES = 2**31
"""Largest list that is read."""


def read_list(data: FolderData, path: Path) -> Iterator[tuple[int, str, Label]]:
    """Line number, file and label of each entry of a list.

    Args:
        data: names the columns, where they have other names than usual.
        path: of the list.

    Raises:
        UserError: it cannot be read, a column is missing, or an entry has no file name or an odd label.
    """
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path} lists no images; give a line for each, or leave data.labels out")
    keys = (
        _key(first[1], data.file_column, FILE_COLUMNS, "file_column", path),
        _key(first[1], data.label_column, LABEL_COLUMNS, "label_column", path),
    )
    yield _entry(*first, *keys, path)
    for number, row in rows:
        yield _entry(number, row, *keys, path)


def digest_of(path: Path) -> str:
    """sha256 in hex of a list.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of each entry."""
    kind = path.suffix.lower()
    if kind not in (*DELIMITERS, ".jsonl"):
        raise UserError(f"data.labels is {str(path)!r}; lists of labels are .csv, .tsv or .jsonl files")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES // 2**30} GB; no list of labels is so long")
        with path.open(encoding="utf-8-sig", newline="" if kind in DELIMITERS else None) as stream:
            if kind in DELIMITERS:
                reader = csv.DictReader(stream, delimiter=DELIMITERS[kind], restkey="", strict=True)
                for row in reader:
                    if "" in row:
                        raise UserError(f"{path}, line {reader.line_num}: more columns than names in the first line")
                    yield reader.line_num, row
                return
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    detail = getattr(error, "msg", None) or type(error).__name__
                    raise UserError(f"{path}, line {number}: no JSON ({detail}); write the line again") from None
                if not isinstance(entry, dict):
                    raise UserError(f"{path}, line {number}: no JSON object; each line is one, with a file and a label")
                yield number, entry
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(path, error) from None


def _key(row: dict[str, Any], given: str | None, usual: tuple[str, ...], key: str, path: Path) -> str:
    """The column that is given, or the first usual one that is there."""
    lower = {str(name).strip().lower(): str(name) for name in row}
    if given is not None:
        if given not in row:
            raise UserError(f"{path} has no column {given!r}{nearest(given, list(row))}")
        return given
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None and len(row) == 1 and any(mark in next(iter(row)) for mark in ";\t"):
        raise UserError(f"{path} begins with {next(iter(row))!r}; put commas between columns, or tabs in a .tsv file")
    if found is None:
        raise UserError(f"{path} has columns {', '.join(map(repr, row))}; say which with data.{key}=NAME")
    return found


def _entry(number: int, row: dict[str, Any], file_key: str, label_key: str, path: Path) -> tuple[int, str, Label]:
    file, label = row.get(file_key), row.get(label_key)
    if isinstance(file, int):  # an id
        file = str(file)
    if not isinstance(file, str) or not file.strip():
        raise UserError(f"{path}, line {number}: no file name in {file_key!r}")
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise UserError(f"{path}, line {number}: {label_key!r} is {label!r}; a label is a whole number or a name")
    if isinstance(label, str) and REAL.fullmatch(label.strip()):
        raise UserError(f"{path}, line {number}: {label_key!r} is {label.strip()}; a label is a whole number or a name")
    if label is None or (isinstance(label, str) and not label.strip()):
        raise UserError(
            f"{path}, line {number}: {file.strip()!r} has no label in {label_key!r}; add it, or remove the line"
        )
    return number, file.strip(), label.strip() if isinstance(label, str) else label


def _unreadable(path: Path, error: Exception) -> UserError:
    detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    return UserError(f"{path} cannot be read as a list of labels ({detail}); mend it, or name another with data.labels")
