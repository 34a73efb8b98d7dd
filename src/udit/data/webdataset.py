"""Shards of the webdataset library, without it: an index of offsets makes every sample readable by itself.

A sample is what follows one another under one key: a member's path up to the first dot of its file name. The rest of
the name, in lower case, is the extension that says what the member holds (webdataset's documentation, "The WebDataset
Format"). The index is kept in the user's cache, as reading the headers of a million samples takes minutes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from udit.data.config import DataInfo, WebDatasetData
from udit.data.encoded import info_of
from udit.data.listing import is_image
from udit.data.names import Names
from udit.data.notes import Notes
from udit.data.numbering import Label, notes_on, numbered
from udit.data.sources import Labels
from udit.data.tar import Listing, Member, read_member
from udit.errors import UserError
from udit.files import cache_folder, whole_file
from udit.progress import progress_bar

LABELS = ("cls", "class", "json.label", "json.class", "json.cls")
"""Where labels usually are: a member's extension, or a key of one that holds JSON."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
VERSION = 1
"""Of the index in the cache."""


@dataclass(frozen=True)
class Sample:
    """What a shard holds under one key."""

    shard: Listing
    """Open until the next one is asked for."""
    key: str
    parts: dict[str, Member]
    """By extension, in lower case."""

    @property
    def title(self) -> str:
        """In errors."""
        return f"{self.shard.path}, sample {self.key!r}"


def describe(data: WebDatasetData) -> DataInfo:
    """Class names, from the labels of all samples.

    Raises:
        UserError: see ``records``.
    """
    classes = records(data).classes
    return info_of(data, classes, bool(classes))


def records(data: WebDatasetData) -> TarRecords:
    """The image files of all shards; the same object where it is asked for again and no shard was written to.

    Raises:
        UserError: no such shards, one that is damaged, or samples without an image or a label.
    """
    shards = shards_of(data.root)
    tests = shards_of(data.test_root) if data.test_root is not None else []
    keys = {"image", "label", "classes"}
    times = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in (*shards, *tests))
    return _records(data.model_dump_json(include=keys), times, len(tests))


def shards_of(root: str) -> list[Path]:
    """The shards that a path or a pattern names, sorted.

    Raises:
        UserError: there are none, or one of a range is missing.
    """
    if found := RANGE.search(root):
        first, last = found.groups()
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        return [path for number in numbers for path in shards_of(root[: found.start()] + number + root[found.end() :])]
    path = Path(root).expanduser()
    if path.is_dir():
        if shards := sorted(path.glob("*.tar")):
            return shards
        raise UserError(f"data.root {root!r} holds no .tar files; give a folder of shards, a .tar file or a pattern")
    if any(letter in root for letter in "*?["):
        if shards := sorted(path.parent.glob(path.name)):
            return shards
        raise UserError(f"data.root {root!r} matches no file; give a folder of shards, a .tar file or a pattern")
    if not path.is_file():
        raise UserError(f"shard {str(path)!r} is not there; put it there, or change data.root")
    return [path]


@functools.lru_cache(maxsize=4)
def _records(settings: str, times: tuple[tuple[Path, int, int], ...], tests: int) -> TarRecords:
    said = repr((VERSION, settings, [(str(path.resolve()), *facts) for path, *facts in times], tests))
    place = cache_folder() / "shards" / f"{hashlib.sha256(said.encode()).hexdigest()}.npz"
    shards = [path for path, _, _ in times]
    try:
        with np.load(place, allow_pickle=False) as kept:
            index = Index(**{name: kept[name] for name in Index.ARRAYS}, classes=tuple(kept["classes"].tolist()))
    except (OSError, ValueError, KeyError):
        index = _indexed(shards, json.loads(settings), tests)
        _keep(place, index)
    return TarRecords(shards, index, said)


@dataclass(frozen=True)
class Index:
    """Where the images of shards are, and their labels."""

    ARRAYS: ClassVar = ("shard", "offset", "size", "labels", "text", "ends", "held_out")

    shard: Labels
    """[N] number of the shard."""
    offset: Labels
    """[N] of the image's first byte."""
    size: Labels
    """[N] bytes."""
    labels: Labels
    text: NDArray[np.uint8]
    """With ``ends`` the arrays of ``Names``: SHARD/KEY of each sample."""
    ends: Labels
    held_out: Labels
    classes: tuple[str, ...]


def _keep(place: Path, index: Index) -> None:
    """Writes an index; a cache that cannot be written is not an error."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as temporary, temporary.open("wb") as stream:
            arrays = {name: getattr(index, name) for name in Index.ARRAYS}
            np.savez(stream, **arrays, classes=np.array(index.classes, str))
    except OSError:
        pass


def _indexed(shards: Sequence[Path], settings: dict[str, Any], tests: int) -> Index:
    shard, offset, size = array("q"), array("q"), array("q")
    found: list[Label] = []
    place = settings["label"]
    first_test = 0

    def names() -> Iterator[str]:
        nonlocal place, first_test
        with progress_bar(len(shards), "listing shards", "shard", leave=False) as bar:
            for number, path in enumerate(shards):
                if number == len(shards) - tests:
                    first_test = len(shard)
                before = len(shard)
                for sample in samples(path):
                    if place is None:
                        place = _label_place(sample)
                    image = _image(sample, settings["image"])
                    shard.append(number)
                    offset.append(image.offset)
                    size.append(image.size)
                    found.append(_label(sample, place))
                    yield f"{path.name}/{sample.key}"
                if len(shard) == before:
                    raise UserError(f"{path} holds no samples; remove it, or write it again")
                bar.update()

    listed = Names(names())
    labels, classes = numbered(found, settings["classes"], f"{shards[0]}" + (" and others" if len(shards) > 1 else ""))
    held_out = np.arange(first_test, len(shard)) if tests else np.empty(0, np.int64)
    numbers = [np.array(values, np.int64) for values in (shard, offset, size)]
    return Index(numbers[0], numbers[1], numbers[2], labels, listed.text, listed.ends, held_out, classes)


def samples(path: Path) -> Iterator[Sample]:
    """The samples of a shard, in order.

    Raises:
        UserError: a damaged shard, or a sample with two members of one extension.
    """
    key = ""
    parts: dict[str, Member] = {}
    with Listing(path) as shard:
        for member in shard.members():
            folder, _, file = member.name.removeprefix("./").rpartition("/")
            if file.startswith("."):  # macOS writes such beside every file
                continue
            stem, dot, extension = file.partition(".")
            if not dot:
                continue
            name, extension = (f"{folder}/{stem}" if folder else stem), extension.lower()
            if name != key and parts:
                yield Sample(shard, key, parts)
                parts = {}
            key = name
            if extension in parts:
                raise UserError(f"{path} holds {member.name!r} twice; a sample's members have different extensions")
            parts[extension] = member
        if parts:
            yield Sample(shard, key, parts)


def _image(sample: Sample, extension: str | None) -> Member:
    """The member that holds a sample's image."""
    there = [part for part in sample.parts if is_image(f"x.{part}")]
    wanted = [extension.lower()] if extension is not None else there
    found = [sample.parts[part] for part in wanted if part in sample.parts]
    if not found:
        what = f"no {extension}" if extension is not None else "no image"
        raise UserError(f"{sample.title}: {what}, only {', '.join(sample.parts)}; leave such samples out")
    if len(found) > 1:
        raise UserError(f"{sample.title}: several images, {', '.join(there)}; say which with data.image")
    return found[0]


def _label_place(sample: Sample) -> str:
    """The first of ``LABELS`` that a sample has; none if it has none."""
    for place in LABELS:
        extension, _, key = place.partition(".")
        if extension in sample.parts and (not key or key in _json(sample, extension)):
            return place
    return "none"


def _label(sample: Sample, place: str) -> Label:
    if place == "none":
        return None
    extension, _, key = place.partition(".")
    if place in sample.parts:
        extension, key = place, ""
    if extension not in sample.parts:
        raise UserError(
            f"{sample.title}: no label in {place}, only {', '.join(sample.parts)}; say where it is with "
            "data.label (none: no labels)"
        )
    if not key:
        text = _bytes(sample, extension).decode("utf-8", "replace").strip()
        if not text or len(text) > 200:
            raise UserError(f"{sample.title}: {extension} holds {text[:40]!r}, neither a number nor a name")
        return text
    value = _json(sample, extension).get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{sample.title}: {place} is {value!r}; a label is a whole number or a name")
    return value


def _json(sample: Sample, extension: str) -> dict[str, Any]:
    try:
        value = json.loads(_bytes(sample, extension))
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:120]
        raise UserError(f"{sample.title}: {extension} is not JSON ({detail}); write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{sample.title}: {extension} holds no JSON object; write it again")
    return value


def _bytes(sample: Sample, extension: str) -> bytes:
    member = sample.parts[extension]
    if member.size > 2**24:
        raise UserError(f"{sample.shard.path} holds {member.name!r} with {member.size:,} bytes; labels are short")
    return sample.shard.read(member)


class TarRecords:
    """Image files of tar shards."""

    def __init__(self, shards: Sequence[Path], index: Index, said: str) -> None:
        """Takes the shards in order, their index, and what names both."""
        self.shards, self.index = shards, index
        self.names: Sequence[str] = Names.of_arrays(index.text, index.ends)
        self.labels, self.classes, self.held_out = index.labels, index.classes, index.held_out
        self.sizes = index.size
        digest = hashlib.sha256(index.text.tobytes())
        for array_ in (index.ends, index.size, index.labels, index.held_out):
            digest.update(array_.astype("<i8").tobytes())
        digest.update(repr(index.classes).encode())
        self.fingerprint = digest.hexdigest()
        self.stamp = hashlib.sha256(said.encode()).hexdigest()
        self.notes = Notes()
        self.notes.update(notes_on(np.delete(index.labels, index.held_out), index.classes))

    def open(self, i: int) -> io.BytesIO:
        """The bytes of image i.

        Raises:
            UserError: its shard is not there, or has become shorter.
        """
        index = self.index
        return io.BytesIO(read_member(self.shards[index.shard[i]], int(index.offset[i]), int(index.size[i])))

    def called(self, i: int) -> str:
        """Shard and key of image i."""
        return f"{self.shards[self.index.shard[i]].parent / self.names[i]}"
