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

from udit.data.captions import Captions
from udit.data.config import DataInfo, WebDatasetData
from udit.data.encoded import info_of
from udit.data.listing import is_image
from udit.data.names import Names
from udit.data.notes import Notes
from udit.data.numbering import Label, notes_on, numbered
from udit.data.sources import Labels
from udit.data.tar import PACKED_NAMES, Listing, Member, read_member
from udit.errors import UserError
from udit.files import cache_folder, whole_file
from udit.progress import progress_bar

LABELS = ("cls", "class", "json.label", "json.class", "json.cls")
"""Where labels usually are: a member's extension, or a key of one that holds JSON."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TEXTS = ("txt", "text", "caption", "json.caption", "json.text", "json.txt")
"""Where captions usually are."""
VERSION = 2
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
        UserError: no such shards, one that is damaged, or samples without an image, a label or a caption.
    """
    shards = shards_of(data.root)
    tests = shards_of(data.test_root) if data.test_root is not None else []
    keys = {"image", "label", "classes", "caption"}
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
        packed = (found for found in path.iterdir() if found.name.lower().endswith(PACKED_NAMES))
        if shards := sorted(path.glob("*.tar")) or sorted(packed):  # the latter are refused when they are read
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
            arrays = {name: kept[name] for name in Index.ARRAYS}
            classes, remarks = (tuple(kept[name].tolist()) for name in ("classes", "remarks"))
            index = Index(**arrays, classes=classes, remarks=remarks)
    except (OSError, ValueError, KeyError):
        index = _indexed(shards, json.loads(settings), tests)
        _keep(place, index)
    return TarRecords(shards, index, said)


@dataclass(frozen=True)
class Index:
    """Where the images of shards are, and their labels."""

    ARRAYS: ClassVar = (
        *("shard", "offset", "size", "labels", "text", "ends", "held_out"),
        *("caption_text", "caption_ends", "captions_of"),
    )

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
    caption_text: NDArray[np.uint8]
    """With ``caption_ends`` the arrays of ``Names``: all captions in order."""
    caption_ends: Labels
    captions_of: Labels
    """[N + 1] number of captions up to and with each sample, from 0; [1] where none are read."""
    classes: tuple[str, ...]
    remarks: tuple[str, ...]
    """On what the first sample holds and is not read."""


def _keep(place: Path, index: Index) -> None:
    """Writes an index; a cache that cannot be written is not an error."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(place) as temporary, temporary.open("wb") as stream:
            arrays = {name: getattr(index, name) for name in Index.ARRAYS}
            words = {"classes": np.array(index.classes, str), "remarks": np.array(index.remarks, str)}
            np.savez(stream, **arrays | words)
    except OSError:
        pass


def _indexed(shards: Sequence[Path], settings: dict[str, Any], tests: int) -> Index:
    shard, offset, size = array("q"), array("q"), array("q")
    found: list[Label] = []
    texts: list[list[str]] = []
    place, caption = settings["label"], settings["caption"]
    remarks: tuple[str, ...] = ()
    first_test = 0

    def names() -> Iterator[str]:
        nonlocal place, remarks, first_test
        with progress_bar(len(shards), "listing shards", "shard", leave=False) as bar:
            for number, path in enumerate(shards):
                if number == len(shards) - tests:
                    first_test = len(shard)
                before = len(shard)
                for sample in samples(path):
                    if not shard:
                        remarks = tuple(_unread(sample, place, caption))
                    if place is None:
                        place = next(_places(sample, LABELS), "none")
                    image = _image(sample, settings["image"])
                    shard.append(number)
                    offset.append(image.offset)
                    size.append(image.size)
                    found.append(_label(sample, place))
                    if caption is not None:
                        texts.append(_texts(sample, caption))
                    yield f"{path.name}/{sample.key}"
                if len(shard) == before:
                    raise UserError(f"{path} holds no samples; remove it, or write it again")
                bar.update()

    listed = Names(names())
    labels, classes = numbered(found, settings["classes"], f"{shards[0]}" + (" and others" if len(shards) > 1 else ""))
    held_out = np.arange(first_test, len(shard)) if tests else np.empty(0, np.int64)
    numbers = [np.array(values, np.int64) for values in (shard, offset, size)]
    said = Captions.of(texts)
    return Index(
        shard=numbers[0],
        offset=numbers[1],
        size=numbers[2],
        labels=labels,
        text=listed.text,
        ends=listed.ends,
        held_out=held_out,
        caption_text=said.texts.text,
        caption_ends=said.texts.ends,
        captions_of=said.ends,
        classes=classes,
        remarks=remarks,
    )


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


def _places(sample: Sample, usual: Sequence[str]) -> Iterator[str]:
    """Those of ``LABELS`` or ``TEXTS`` that a sample has."""
    for place in usual:
        extension, _, key = place.partition(".")
        if extension in sample.parts and (not key or key in _json(sample, extension)):
            yield place


def _unread(sample: Sample, label: str | None, caption: str | None) -> Iterator[str]:
    """Labels and captions that a sample has, that are not read, and that the configuration does not speak of."""
    try:
        labels = list(_places(sample, LABELS)) if label is None else []
        texts = list(_places(sample, TEXTS)) if caption is None else []
    except UserError:  # a member that nothing reads may hold anything
        return
    if len(labels) > 1:
        others = ", ".join(labels[1:])
        yield f"samples have labels in several places: {labels[0]} is read, {others} not; data.label says which"
    if texts:
        yield f"samples have captions in {', '.join(texts)}, which are not read; data.caption={texts[0]} reads them"


def _label(sample: Sample, place: str) -> Label:
    if place == "none":
        return None
    value, is_text = _value(sample, place, "label", "say where it is with data.label (none: no labels)")
    if is_text and (not value.strip() or len(value) > 200):
        raise UserError(f"{sample.title}: {place} holds {value.strip()[:40]!r}, neither a number nor a name")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{sample.title}: {place} is {value!r}; a label is a whole number or a name")
    return value.strip() if isinstance(value, str) and is_text else value


def _texts(sample: Sample, place: str) -> list[str]:
    """The captions of a sample: lines of a text, or a string or a list of strings in JSON."""
    value, is_text = _value(sample, place, "caption", "say where it is with data.caption, or leave such samples out")
    texts = value.splitlines() if is_text else [value] if isinstance(value, str) else value
    known = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    plain = [text for text in (" ".join(each.split()) for each in texts) if text] if known else []
    if not plain:
        raise UserError(
            f"{sample.title}: {place} holds no text; write a caption, or several, into it, or leave such samples out"
        )
    return plain


def _value(sample: Sample, place: str, what: str, remedy: str) -> tuple[Any, bool]:
    """What lies in a place, and whether it is a member's text; else it is a value of JSON, None where it is missing."""
    extension, _, key = place.partition(".")
    if place in sample.parts:
        extension, key = place, ""
    if extension not in sample.parts:
        raise UserError(f"{sample.title}: no {what} in {place}, only {', '.join(sample.parts)}; {remedy}")
    if key:
        return _json(sample, extension).get(key), False
    try:
        return _bytes(sample, extension).decode("utf-8-sig"), True
    except UnicodeDecodeError:
        raise UserError(f"{sample.title}: {extension} is not UTF-8 text; write it again") from None


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
        raise UserError(
            f"{sample.shard.path} holds {member.name!r} with {member.size:,} bytes; labels and captions are short"
        )
    return sample.shard.read(member)


class TarRecords:
    """Image files of tar shards."""

    captions: Captions
    """Of each image; only there where ``data.caption`` names them."""

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
        if len(index.captions_of) > 1:
            self.captions = Captions(Names.of_arrays(index.caption_text, index.caption_ends), index.captions_of)
            digest.update(self.captions.digest().encode())
        self.fingerprint = digest.hexdigest()
        self.stamp = hashlib.sha256(said.encode()).hexdigest()
        self.notes = Notes()
        for remark in index.remarks:
            self.notes.add(remark)
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
