"""Hugging Face `datasets`: hub ids, folders of images and parquet files; from its cache, or streamed once."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from udit import hub
from udit.data.captions import captions_of, column_captions
from udit.data.config import DataInfo, HubData
from udit.data.decode import decode
from udit.data.encoded import info_of
from udit.data.listing import image_files
from udit.data.names import Names
from udit.data.notes import Notes, label_notes
from udit.data.sources import InMemory, Labels, Pixels
from udit.errors import UserError, missing_extra
from udit.files import cache_folder, whole_folder
from udit.progress import progress_bar

if TYPE_CHECKING:
    from datasets import Dataset


def describe(data: HubData) -> DataInfo:
    """Class names from the data set's own description.

    Raises:
        UserError: see ``class_names``.
    """
    names = class_names(data)
    return info_of(data, names, labelled=bool(names))


def class_names(data: HubData) -> tuple[str, ...]:
    """Class names of the label column, from the data set's own description; nothing else is downloaded.

    None, where images have captions and there is no label column.

    Raises:
        UserError: `datasets` is missing, no such data set or column, or labels without names.
    """
    features = _load(data, data.split, streaming=True).features or {}
    _check_columns(data, features)
    if _unlabelled(data, features):
        return ()
    names = data.classes or getattr(features[data.label], "names", None)
    if not names:
        raise UserError(
            f"column {data.label!r} of {data.path} has no class names; give them in label order as data.classes=[...]"
        )
    return tuple(names)


def _unlabelled(data: HubData, features: Any) -> bool:
    """Whether images have captions in place of labels."""
    return data.captioned and data.label not in features


def _check_columns(data: HubData, features: Any) -> None:
    columns = [("image", data.image, _is_image)]
    if data.caption is not None:
        columns.append(("caption", data.caption, _is_text))
    if not _unlabelled(data, features):
        columns.append(("label", data.label, _is_label))
    for key, name, may in columns:
        if name not in features:
            there = [column for column, feature in features.items() if may(feature)]
            known = f"set data.{key} to one of its columns: {', '.join(sorted(there))}" if there else "no column fits"
            reason = _why_unlabelled(Path(data.path).expanduser()) if key == "label" else None
            raise UserError(f"{data.path} has no column {name!r}; {reason or known}")
    if not _is_image(features[data.image]):
        raise UserError(f"column {data.image!r} of {data.path} holds no images; set data.image to the one that does")


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)  # of a list
    inner = inner[0] if isinstance(inner, list) and inner else inner
    return str(getattr(inner, "dtype", "")) in ("string", "large_string")


def _is_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel" or "int" in str(getattr(feature, "dtype", ""))


def _why_unlabelled(root: Path) -> str | None:
    """Why a local folder of images gets no labels from `datasets`, and what to do; None for anything else."""
    images = [path.relative_to(root) for path in image_files(root)] if root.is_dir() else []
    if not images:
        return None
    metadata = sorted(path.name for path in root.glob("metadata.*"))
    depths = {len(path.parts) for path in images}
    if metadata:
        reason = f"`datasets` takes labels from {metadata[0]} alone where there is one"
    elif len(depths) > 1:
        odd = min(images, key=lambda path: len(path.parts)) if 1 in depths else max(images, key=lambda p: len(p.parts))
        reason = f"`datasets` makes none where images lie at several depths, as {str(odd)!r} does"
    else:
        reason = "`datasets` makes none of a single class"
    return f"{reason}; data.kind=folder data.root={root} reads class folders as they are"


def _check_parts(data: HubData) -> None:
    """Refuses a local folder of images of which `datasets` leaves class folders out.

    It takes folders with words such as train or test in their names for parts of the data set, and forgets the others;
    and it does not follow links to folders.

    Raises:
        UserError: names folders that are left out.
    """
    root = Path(data.path).expanduser()
    images = [path.relative_to(root) for path in image_files(root)] if root.is_dir() else []
    if not images:
        return
    from datasets import load_dataset_builder

    parts = load_dataset_builder(data.path, data.name).config.data_files or {}
    read = {Path(str(file)).resolve() for files in parts.values() for file in files}
    top = root.resolve()
    taken = {path.relative_to(top).parts[0] for path in read if path.is_relative_to(top)}
    left = sorted({path.parts[0] for path in images if len(path.parts) > 1} - taken)
    if left and taken:
        shown = ", ".join(map(repr, left[:3])) + (" ..." if len(left) > 3 else "")
        reason = f"takes {', '.join(map(repr, sorted(taken)[:3]))} in {root} for parts of the data set " + (
            f"({', '.join(map(str, parts))}), by words in their names,"
        )
        if all((root / name).is_symlink() for name in left):
            reason = f"follows no links to folders in {root}"
        raise UserError(
            f"`datasets` {reason} and leaves out {shown}; data.kind=folder data.root={root} reads all as classes"
        )


def _load(data: HubData, split: str, *, streaming: bool) -> Any:
    """A split as `datasets` loads it.

    Raises:
        UserError: `datasets` is missing, or cannot load the split; with its message.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError:
        raise missing_extra("data.kind=huggingface", "datasets", "hub") from None
    try:
        if data.path.endswith(".parquet"):
            files = {split: str(Path(data.path).expanduser())}
            return load_dataset("parquet", data_files=files, split=split, streaming=streaming)
        _check_parts(data)
        return load_dataset(data.path, data.name, split=split, revision=data.revision, streaming=streaming)
    except UserError:
        raise
    except (OSError, ValueError, LookupError, DatasetsError) as error:
        detail = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"data.path {data.path!r} cannot be loaded ({detail}); check data.path, name, split and revision"
        ) from None


def _labels(values: Any, data: HubData, split: str, num_classes: int) -> Labels:
    """A label column as numbers.

    Raises:
        UserError: a label is missing, not an integer, or out of range.
    """
    labels = np.array(values)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UserError(f"column {data.label!r} of {data.path}, {split}, does not hold integers; label every image")
    if labels.min() < 0 or labels.max() >= num_classes:
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(
            f"{data.path}, {split}, has a label {bad} where there are {num_classes} classes; labels count from 0 (-1 "
            "marks a split without labels)"
        )
    return labels.astype(np.int64)


def _file(cell: dict[str, Any]) -> Path | io.BytesIO:
    """An image as `datasets` stores it: the bytes of its file, or a path."""
    return io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])


class Rows:
    """Image files in the Arrow tables that `datasets` caches, memory-mapped."""

    def __init__(self, data: HubData) -> None:
        """Loads the splits; decodes nothing.

        Raises:
            UserError: see ``class_names``, or a label out of range.
        """
        from datasets import Image

        self.data = data
        self.classes = class_names(data)
        num_classes = len(self.classes)
        self._tables: list[Dataset] = []
        labels: list[Labels] = []
        texts: list[Any] = []
        for split in data.splits:
            table = _load(data, split, streaming=False)
            _check_columns(data, table.features)
            if data.caption is not None:
                texts += table.select_columns([data.caption]).with_format("arrow")[:][data.caption].to_pylist()
            if num_classes:
                column = table.select_columns([data.label]).with_format("arrow")[:][data.label]
                labels.append(_labels(column.to_pylist(), data, split, num_classes))
            else:
                labels.append(np.zeros(len(table), np.int64))
            self._tables.append(table.select_columns([data.image]).cast_column(data.image, Image(decode=False)))
        self.labels: Labels = np.concatenate(labels)
        self.notes = label_notes(labels[0], num_classes) if num_classes else Notes()
        if data.caption is not None:
            self.captions = column_captions(f"{data.caption!r} of {data.path}", texts)
        self.names: Sequence[str] = Names(
            f"{s} {i}" for s, y in zip(data.splits, labels, strict=True) for i in range(len(y))
        )
        self.held_out = np.arange(len(labels[0]), len(self.labels))
        sizes = array("q")
        self.fingerprint = self.stamp = self._digest(sizes)
        self.sizes: Labels = np.array(sizes, np.int64)

    def _digest(self, sizes: array[int]) -> str:
        """sha256 over labels, and the name and length of every image file; fills ``sizes``."""
        import pyarrow.compute as pc

        digest = hashlib.sha256(self.labels.astype("<i8").tobytes() + self.held_out.astype("<i8").tobytes())
        if (captions := captions_of(self)) is not None:
            digest.update(captions.digest().encode())
        for table in self._tables:
            for batch in table.with_format("arrow").iter(1000):
                cells = batch[self.data.image]
                paths = pc.struct_field(cells, "path").to_pylist()
                lengths = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
                for path, length in zip(paths, lengths, strict=True):
                    size = Path(path).stat().st_size if length is None else length
                    sizes.append(size)
                    digest.update(f"{Path(path or '').name}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def open(self, i: int) -> Path | io.BytesIO:
        """The file of image i."""
        first = len(self._tables[0])
        return _file((self._tables[0][i] if i < first else self._tables[1][i - first])[self.data.image])

    def called(self, i: int) -> str:
        """Path and split of image i."""
        return f"{self.data.path}, {self.names[i]}"


def streamed(data: HubData) -> InMemory:
    """A data set of the hub that is read once: images are cropped as they arrive, and only the squares are kept.

    They are stored in the user's cache and memory-mapped, so that order, mirroring and resuming are bit-identical to
    those of any other source. The first run waits until everything is read; reading that was interrupted starts again.
    The commit that ``data.revision`` names today is part of the place: another commit is another data set.

    Raises:
        UserError: see ``class_names``; an image that cannot be decoded; a cache that cannot be written.
    """
    from filelock import FileLock

    deciding = {"path", "name", "image", "label", "size", "channels", "classes", *(["bits"] if data.bits != 16 else [])}
    said = data.model_dump(mode="json", include=deciding)
    key = hashlib.sha256(repr(("1", sorted(said.items()), data.splits, _commit(data))).encode()).hexdigest()[:32]
    place = cache_folder() / "pictures" / key
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):  # other ranks wait for the first
            if not place.is_dir():
                _receive(data, place)
        labels, counts = np.load(place / "labels.npy"), np.load(place / "counts.npy").tolist()
        pixels = np.memmap(place / "pixels", np.uint8, "r", shape=(len(labels), data.channels, *data.shape))
        fingerprint = (place / "fingerprint").read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{place} cannot be used ({error.strerror or error}); make room there, or set XDG_CACHE_HOME elsewhere"
        ) from None
    label_notes(labels[: counts[0]], len(data.classes)).warn()  # the column's own names take a request
    names = Names(f"{split} {i}" for split, count in zip(data.splits, counts, strict=True) for i in range(count))
    return InMemory(pixels, labels, names, np.arange(counts[0], len(labels)), fingerprint)


def _commit(data: HubData) -> str:
    """The commit that a revision of a hub's data set names."""
    return hub.dataset_commit(
        data.path,
        data.revision,
        what=f"data.path {data.path!r} cannot be streamed",
        remedy="only data sets of the hub can be streamed, set data.streaming=false",
    )


def _receive(data: HubData, place: Path) -> None:
    """Writes squares, labels and fingerprint of all splits to a folder, whole or not at all."""
    num_classes = len(class_names(data))
    labels: list[Labels] = []
    digest = hashlib.sha256()
    with whole_folder(place) as temporary:
        with (temporary / "pixels").open("wb") as stream:
            for split in data.splits:
                found = []
                for square, label in _passing(data, split):
                    digest.update(square.tobytes())
                    stream.write(square.tobytes())
                    found.append(label)
                labels.append(_labels(found, data, split, num_classes))
        digest.update(repr([part.tolist() for part in labels]).encode())
        np.save(temporary / "labels.npy", np.concatenate(labels))
        np.save(temporary / "counts.npy", [len(part) for part in labels])
        (temporary / "fingerprint").write_text(digest.hexdigest(), encoding="utf-8")


def _passing(data: HubData, split: str) -> Iterator[tuple[Pixels, Any]]:
    """A split's squares with their labels, in the order of its files."""
    from datasets import Image

    rows = _load(data, split, streaming=True)
    _check_columns(data, rows.features or {})
    rows = rows.select_columns([data.image, data.label]).cast_column(data.image, Image(decode=False))
    try:
        with progress_bar(None, f"streaming {split}", "image", leave=False) as bar:
            for i, row in enumerate(rows):
                called = f"{data.path}, {split} {i}"
                yield decode(_file(row[data.image]), data.size, data.channels, called, bits=data.bits), row[data.label]
                bar.update()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"{data.path}, {split}, stopped streaming ({detail}); run the same command again") from None
