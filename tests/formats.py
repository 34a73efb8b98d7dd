"""Every format of data that is read: who writes a file of it for the tests, and one that is damaged.

The table of docs/formats.md has a row for each of them, and tests/test_formats.py tries them all.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, SIDE, CLASSES = 36, 8, 3
"""Images, their side, and classes; image i is of class i % CLASSES."""


def pixels(i: int) -> np.ndarray:
    """Image i, uint8 [SIDE, SIDE]."""
    return np.random.default_rng(i).integers(0, 256, (SIDE, SIDE), np.uint8)


def encoded(i: int, kind: str = "PNG") -> bytes:
    """The file of image i."""
    stream = io.BytesIO()
    Image.fromarray(pixels(i)).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


@dataclass(frozen=True)
class Format:
    """One format."""

    row: str
    """In the table of docs/formats.md."""
    by: str
    """What writes its file here."""
    write: Callable[[Path], list[str]]
    """Writes COUNT images into a folder; returns the overrides of a run that read them."""
    damage: Callable[[Path], str]
    """Damages what was written; returns what the error names."""
    extra: bool = False
    """Whether a package of an extra writes or reads it."""
    whole: bool = True
    """Whether images come back in the order in which they were written."""


def _spoiled(path: Path, at: int | None = None) -> None:
    """Replaces bytes in the middle of a file, or from a place on, by zeros."""
    data = bytearray(path.read_bytes())
    start = len(data) // 2 if at is None else at
    data[start : start + 64] = bytes(64)
    path.write_bytes(data)


def _tar(path: Path, first: int, count: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i in range(first, first + count):
            for extension, data in (("png", encoded(i)), ("cls", str(i % CLASSES).encode()), ("json", b'{"width": 8}')):
                member = tarfile.TarInfo(f"images/{i:05}.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def tar_shards(root: Path) -> list[str]:
    for shard in range(3):
        _tar(root / f"train-{shard:04}.tar", 12 * shard, 12)
    return ["data.kind=webdataset", f"data.root={root}/train-{{0000..0002}}.tar"]


def tar_hole(root: Path) -> str:
    path = root / "train-0001.tar"
    with tarfile.open(path) as archive:
        place = archive.getmembers()[9].offset
    data = bytearray(path.read_bytes())
    data[place : place + 1024] = bytes(1024)
    path.write_bytes(data)
    return "train-0001.tar has a hole"


def webdataset_shards(root: Path) -> list[str]:
    from webdataset import TarWriter

    for shard in range(3):
        with TarWriter(str(root / f"{shard:06}.tar")) as writer:
            for i in range(12 * shard, 12 * shard + 12):
                image = Image.fromarray(pixels(i))
                writer.write({"__key__": f"{i:05}", "png": image, "json": {"label": f"class {i % CLASSES}", "id": i}})
    return ["data.kind=webdataset", f"data.root={root}"]


def webdataset_hole(root: Path) -> str:
    path = root / "000002.tar"
    path.write_bytes(path.read_bytes()[:-20_000])
    return "000002.tar has a hole or was cut off"


def _dataset_json(labels: list[list[object]] | None) -> str:
    return json.dumps({"labels": labels})


def json_zip(root: Path) -> list[str]:
    with zipfile.ZipFile(root / "cifar.zip", "w", zipfile.ZIP_STORED) as archive:
        names = [f"{i // 10:05}/img{i:08}.png" for i in range(COUNT)]
        for i, name in enumerate(names):
            archive.writestr(name, encoded(i))
        archive.writestr("dataset.json", _dataset_json([[name, i % CLASSES] for i, name in enumerate(names)]))
    return ["data.kind=dataset-json", f"data.root={root}/cifar.zip"]


def json_zip_missing(root: Path) -> str:
    with zipfile.ZipFile(root / "cifar.zip") as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if "00000007" not in name}
    with zipfile.ZipFile(root / "cifar.zip", "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)
    return "dataset.json of {root}/cifar.zip names '00000/img00000007.png', not among its images"


def json_folder(root: Path) -> list[str]:
    for i in range(COUNT):
        path = root / f"{i // 10:05}" / f"img{i:08}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(i))
    (root / "dataset.json").write_text(_dataset_json(None))
    return ["data.kind=dataset-json", f"data.root={root}"]


def json_folder_bad(root: Path) -> str:
    _spoiled(root / "00001" / "img00000012.png")
    return "image '{root}/00001/img00000012.png' cannot be read"


def lsun(root: Path) -> list[str]:
    import lmdb

    for label in range(CLASSES):
        place = root / f"room{label}_train_lmdb"
        with lmdb.open(str(place), map_size=2**20) as database, database.begin(write=True) as writing:
            for i in range(label, COUNT, CLASSES):
                writing.put(f"{i:040x}".encode(), encoded(i, "WEBP"))
    return ["data.kind=lmdb", f"data.root={root}"]


def lsun_of_another_writer(root: Path) -> str:
    import lmdb

    with lmdb.open(str(root / "room1_train_lmdb"), map_size=2**20) as database, database.begin(write=True) as writing:
        writing.put(b"0" * 39, b"\x08\x03\x10\x20\x18\x20\x22\x80\x18")  # Caffe's Datum
    return "room1_train_lmdb is an LMDB of another writer"


def adm_npz(root: Path) -> list[str]:
    for part in range(2):
        ids = range(18 * part, 18 * part + 18)
        images = np.stack([np.repeat(pixels(i)[..., None], 3, axis=2) for i in ids])
        np.savez(root / f"samples_{part}.npz", images, np.array([i % CLASSES for i in ids]))
    return ["data.kind=npz", f"data.path={root}"]


def adm_npz_bad(root: Path) -> str:
    _spoiled(root / "samples_1.npz", 400)
    return "{root}/samples_1.npz cannot be read as .npz"


def label_list(root: Path) -> list[str]:
    (root / "images").mkdir()
    with (root / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["filename", "label"])
        for i in range(COUNT):
            (root / "images" / f"{i:05}.png").write_bytes(encoded(i))
            writer.writerow([f"{i:05}.png", f"class {i % CLASSES}"])
    return ["data.kind=folder", f"data.root={root}/images", f"data.labels={root}/labels.csv"]


def label_list_bad(root: Path) -> str:
    (root / "images" / "00007.png").unlink()
    return "labels.csv names images that are not in '{root}/images': '00007.png' (line 9)"


def label_lines(root: Path) -> list[str]:
    lines = []
    for i in range(COUNT):
        path = root / "parts" / str(i // 9) / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i))
        lines.append(json.dumps({"file_name": f"parts/{i // 9}/{i:05}.png", "label": i % CLASSES}) + "\n")
    (root / "metadata.jsonl").write_text("".join(lines))
    return ["data.kind=folder", f"data.root={root}", "data.labels=metadata.jsonl"]


def label_lines_bad(root: Path) -> str:
    with (root / "metadata.jsonl").open("a") as stream:
        stream.write('{"file_name": "parts/0/00000.png", "label": 1}\n')
    return "metadata.jsonl, line 37: 'parts/0/00000.png' is listed twice, first in line 1"


def nested(root: Path) -> list[str]:
    for i in range(COUNT):
        path = root / "animals" / f"kind {i % CLASSES}" / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i))
    return ["data.kind=folder", f"data.root={root}", "data.label_by=path"]


def nested_bad(root: Path) -> str:
    _spoiled(root / "animals" / "kind 2" / "00002.png")
    return "image '{root}/animals/kind 2/00002.png' cannot be read"


def _files(kind: str, suffix: str) -> Callable[[Path], list[str]]:
    def write(root: Path) -> list[str]:
        for i in range(COUNT):
            path = root / f"class {i % CLASSES}" / f"{i:05}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            image, more = Image.fromarray(np.repeat(np.repeat(pixels(i), 8, 0), 8, 1)), {}
            if kind == "MPO":
                image, more = image.convert("RGB"), {"save_all": True, "append_images": [image.convert("RGB")]}
            if kind == "HEIF":
                import pillow_heif

                pillow_heif.register_heif_opener()
                image = image.convert("RGB")
            image.save(path, kind, **more)
        return ["data.kind=folder", f"data.root={root}"]

    return write


def _bad_file(suffix: str) -> Callable[[Path], str]:
    def damage(root: Path) -> str:
        path = root / "class 1" / f"00004.{suffix}"
        path.write_bytes(path.read_bytes()[:40])
        return f"image '{{root}}/class 1/00004.{suffix}' cannot be read"

    return damage


def deep_tiff(root: Path) -> list[str]:
    for i in range(COUNT):
        path = root / f"class {i % CLASSES}" / f"{i:05}.tif"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(i).astype(np.uint16) * 256 + i).save(path, "TIFF")
    return ["data.kind=folder", f"data.root={root}", "data.deep=true"]


FORMATS = {
    "webdataset": Format(
        "WebDataset `.tar` shards", "webdataset's `TarWriter`", webdataset_shards, webdataset_hole, True
    ),
    "tar": Format("`.tar` shards of USTAR members", "Python's `tarfile`", tar_shards, tar_hole),
    "zip": Format("EDM's and StyleGAN's zip with `dataset.json`", "its description", json_zip, json_zip_missing),
    "json-folder": Format("the same as a folder, without labels", "its description", json_folder, json_folder_bad),
    "lmdb": Format("LMDB as LSUN ships it", "`lmdb`, as LSUN's export does", lsun, lsun_of_another_writer, True, False),
    "npz": Format("ADM's `.npz` batches, one or several", "`numpy.savez`, as ADM", adm_npz, adm_npz_bad),
    "csv": Format("CSV or TSV of labels beside a flat folder", "Python's `csv`", label_list, label_list_bad),
    "jsonl": Format("JSONL of labels, files in folders", "Python's `json`", label_lines, label_lines_bad),
    "nested": Format("nested folders, paths as classes", "Pillow", nested, nested_bad, whole=False),
    "tiff": Format("TIFF", "Pillow", _files("TIFF", "tiff"), _bad_file("tiff"), whole=False),
    "tiff16": Format("TIFF of 16 bits, without a detour through 8", "Pillow", deep_tiff, _bad_file("tif"), whole=False),
    "mpo": Format("MPO, its first image", "Pillow", _files("MPO", "mpo"), _bad_file("mpo"), whole=False),
    "avif": Format("AVIF", "Pillow", _files("AVIF", "avif"), _bad_file("avif"), whole=False),
    "heic": Format("HEIC", "`pillow-heif`", _files("HEIF", "heic"), _bad_file("heic"), extra=True, whole=False),
}
