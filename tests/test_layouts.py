"""Folders as people have them: what is read, what is left out, and what is said; a sound folder gets no remark."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from conftest import ErrorOf, succeeds
from image_files import noise
from udit.data.check import Contents, check_folder
from udit.data.listing import Listing, image_files
from udit.data.notes import EXAMPLES, Notes, label_notes
from udit.errors import UserError
from udit.evaluation.sets import read_images

LEFT = "folders that systems and programs leave are left out"
HIDDEN = "hidden images are left out"
LOOSE = "itself belong to no class and are left out"
SKIPPED = "skipped: unsupported extension"
LABELS = "label files are not read, a class is a folder"
PARTS = "look like parts of a data set, whose folders are the classes; give data.root="
DEEPER = "look like the classes; if so, give data.root="
INSIDE = "images in folders inside a class folder belong to the class"
NOWHERE = "links that lead nowhere"
ALIKE = "class folders whose names differ in case, spaces or composed letters only"


class Case(NamedTuple):
    """A folder, and what is expected of it."""

    files: Sequence[str]
    """Paths; ``a -> b`` is a link, a path that ends in / an empty folder, every image the same few bytes."""
    classes: dict[str, int]
    notes: Sequence[str] = ()
    """A part of each note, in order."""


def many(*names: str, count: int = 2, suffix: str = "png") -> list[str]:
    return [f"{name}/{i}.{suffix}" for name in names for i in range(count)]


CAFE = unicodedata.normalize("NFD", "café")
CD = many("cat", "dog")
SOUND = {"cat": 2, "dog": 2}
FOLDERS = {
    # sound ones
    "two classes": Case(CD, SOUND),
    "all formats": Case(["a/1.PNG", "a/2.jpeg", "b/3.JPG", "b/4.webp", "b/5.gif"], {"a": 2, "b": 3}),
    "numbers": Case(many("1", "2", "10"), {"1": 2, "10": 2, "2": 2}),
    "ImageNet's": Case(many("n01440764", "n01443537", suffix="JPEG"), {"n01440764": 2, "n01443537": 2}),
    "foreign names": Case(many("кот", "犬"), {"кот": 2, "犬": 2}),
    "a readme beside": Case([*CD, "README.md", "LICENSE.txt", "readme.txt"], SOUND),
    "hidden system files": Case([*CD, ".DS_Store", "cat/.DS_Store", ".git/x", "cat/.ipynb_checkpoints/"], SOUND),
    "one class": Case(many("faces", count=3), {"faces": 3}),
    "all a level below": Case(many("cat/black", "cat/white", "dog/pug"), {"cat": 4, "dog": 2}),
    "linked classes": Case([*many(".store/x"), *CD, "bird -> .store/x"], {"bird": 2, **SOUND}, [LEFT]),
    # what systems and storage leave
    "a Mac's zip": Case([*CD, "__MACOSX/cat/._0.png", "__MACOSX/dog/._1.png"], SOUND, [LEFT]),
    "a Mac's share": Case([*CD, "cat/._0.png", "dog/._0.png", ".AppleDouble/x"], SOUND, [HIDDEN]),
    "a Synology": Case([*CD, "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir/dog/0.jpg"], SOUND, [LEFT]),
    "a QNAP": Case([*CD, "@Recycle/old/1.png", "#recycle/2.png"], SOUND, [LEFT]),
    "a Windows disk": Case([*CD, "$RECYCLE.BIN/S-1-5/1.png", "System Volume Information/x"], SOUND, [LEFT]),
    "an ext4 disk": Case([*CD, "lost+found/"], SOUND),
    "Thumbs.db": Case([*CD, "cat/Thumbs.db", "dog/desktop.ini"], SOUND, [SKIPPED]),
    "notebooks": Case([*CD, "cat/.ipynb_checkpoints/0-checkpoint.png"], SOUND, [LEFT]),
    # pictures in other places
    "loose pictures": Case([*CD, "cover.jpg", "1.png"], SOUND, [LOOSE]),
    "mixed depths": Case([*CD, "cat/old/1.png", "cat/old/2.png"], {"cat": 4, "dog": 2}, [INSIDE]),
    "a level too deep": Case(many("images/cat", "images/dog"), {"images": 4}, [DEEPER]),
    "splits with classes": Case(many("train/cat", "train/dog", "test/cat"), {"test": 2, "train": 4}, [PARTS]),
    "Imagenette": Case(
        [*many("train/n01", "val/n01"), "noisy_imagenette.csv"], {"train": 2, "val": 2}, [LABELS, PARTS]
    ),
    "splits beside classes": Case([*CD, *many("test/cat", "test/dog")], {**SOUND, "test": 4}, [PARTS]),
    "splits without classes": Case(many("train", "test"), {"test": 2, "train": 2}, ["have names of parts"]),
    "validation as a class": Case(many("train", "validation", "dog"), {"dog": 2, "train": 2, "validation": 2}),
    "a camera's card": Case(many("DCIM/100CANON", "DCIM/101CANON", suffix="JPG"), {"DCIM": 4}, [DEEPER]),
    "Lightroom": Case([*CD, "cat/0.xmp", "dog/1.CR2"], SOUND, [SKIPPED]),
    # labels in files
    "a table of labels": Case([*CD, "labels.csv"], SOUND, [LABELS]),
    "Hugging Face's metadata": Case([*CD, "metadata.jsonl"], SOUND, [LABELS]),
    "lists of splits": Case([*CD, "train.txt", "val.txt", "classes.txt"], SOUND, [LABELS]),
    "captions": Case([*CD, "cat/0.txt", "cat/1.txt"], SOUND, [SKIPPED]),
    "LabelMe": Case([*CD, "cat/0.json"], SOUND, [SKIPPED]),
    "Pascal VOC": Case([*many("JPEGImages", suffix="jpg"), "Annotations.xml"], {"JPEGImages": 2}, [LABELS]),
    "Roboflow": Case(
        [*many("train/cat", "valid/cat"), "README.dataset.txt", "data.yaml"], {"train": 2, "valid": 2}, [LABELS, PARTS]
    ),
    "CelebA": Case(
        [*many("img_align_celeba", suffix="jpg"), "list_attr_celeba.csv"], {"img_align_celeba": 2}, [LABELS]
    ),
    # names and links
    "names that differ in case": Case(many("Cat", "cat"), {"Cat": 2, "cat": 2}, [ALIKE]),
    "names in two forms": Case(
        many("café", unicodedata.normalize("NFD", "café")),
        {unicodedata.normalize("NFD", "café"): 2, "café": 2},
        [ALIKE],
    ),
    "a link to nothing": Case([*CD, "cat/gone.png -> ../../gone.png"], SOUND, [NOWHERE]),
    "a linked folder in a class": Case([*CD, "cat/more -> ../dog"], SOUND, ["links to folders are not followed"]),
    "a class that is gone": Case([*CD, "bird -> nowhere"], SOUND, [NOWHERE]),
    "other formats": Case([*CD, "cat/2.heic", "cat/3.bmp", "dog/4.tiff"], SOUND, [SKIPPED]),
}
REFUSED = {
    "COCO": (
        ["images/0.jpg", "annotations/instances.json"],
        "/annotations' holds no PNG, JPEG, WebP or GIF; add some or",
    ),
    "YOLO": ([*many("images/train"), "labels/train/0.txt"], "/labels' holds no PNG, JPEG, WebP or GIF; add some or"),
    "Oxford Pets": (
        ["images/Abyssinian_1.jpg", "annotations/list.txt"],
        "annotations' holds no PNG, JPEG, WebP or GIF; add some or",
    ),
    "an empty class": ([*CD, "bird/"], "/bird' holds no PNG, JPEG, WebP or GIF; add some or remove it"),
    "no classes": (
        ["1.png", "2.png"],
        "holds 2 images and no class folders; put the images of each class into",
    ),
    "nothing": ([], "holds no class folders"),
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("picture") / "x.png"
    noise(8, 8).save(path)
    return path.read_bytes()


def lay_out(root: Path, files: Sequence[str], picture: bytes) -> Path:
    root.mkdir()
    for name in files:
        path, _, target = name.partition(" -> ")
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if target:
            place.symlink_to(root / target if not target.startswith("..") else target)
        elif path.endswith("/"):
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(picture)
    return root


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_read_and_remarked_on(name: str, tmp_path: Path, picture: bytes) -> None:
    files, classes, wanted = FOLDERS[name]
    listing = Listing.of(lay_out(tmp_path / "data", files, picture))
    assert dict(zip(listing.classes, listing.counts, strict=True)) == classes
    notes = list(listing.notes)
    assert len(notes) == len(wanted), notes
    for note, part in zip(notes, wanted, strict=True):
        assert part in note
        assert "\n" not in note


@pytest.mark.parametrize("name", REFUSED)
def test_folder_that_cannot_be_trained_on_is_refused(
    name: str, tmp_path: Path, picture: bytes, error_of: ErrorOf
) -> None:
    files, wanted = REFUSED[name]
    root = lay_out(tmp_path / "data", files, picture)
    assert wanted in error_of("train", "folder", f"data.root={root}", "data.size=8", f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_check_and_training_tell_the_same(
    tmp_path: Path, picture: bytes, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = lay_out(tmp_path / "data", [*CD, "cover.png", "labels.csv", "cat/._0.png"], picture)
    said = succeeds(capsys, "data", "check", str(root), "--size", "8")
    for note in Listing.of(root).notes:
        assert f"note: {note}\n" in said
    from udit.data.folder import ImageFolder

    ImageFolder(root, 8, 3)
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"data: {note}" for note in Listing.of(root).notes]


def test_note_has_a_count_and_three_examples() -> None:
    notes = Notes()
    for i in range(1234):
        notes.add("left out", f"'{i}'")
    assert list(notes) == ["left out (1,234 files, e.g. '0', '1', '2')"]
    assert EXAMPLES == 3


# ---- the same images everywhere --------------------------------------------------------------------------------------


def test_scoring_reads_what_training_reads(tmp_path: Path, picture: bytes, caplog: pytest.LogCaptureFixture) -> None:
    files = ["a/1.png", "a/2.gif", "b/.3.png", "b/4.webp", "@eaDir/5.png", "b/.ipynb_checkpoints/4.png", "b/notes.txt"]
    root = lay_out(tmp_path / "data", files, picture)
    trained = [str(root / name) for name in Listing.of(root).names]
    assert [str(path) for path in image_files(root)] == trained
    assert len(read_images(root)) == len(trained) == 3
    assert "folders that systems and programs leave are left out (2 folders" in caplog.text
    assert "hidden images are left out (1 file" in caplog.text


# ---- what only decoding tells ----------------------------------------------------------------------------------------


def checked(root: Path) -> tuple[list[str], list[str]]:
    """Lines and notes of a check."""
    contents = Contents()
    return list(check_folder(root, 8, contents)), list(contents.notes)


@pytest.mark.parametrize(
    ("values", "deep", "wanted"),
    [
        ((0, 4095), True, "16-bit files of 12 bits, with values up to 4095; set data.bits=12"),
        ((0, 1), False, "values 0 and 1 only, as masks have; multiply them by 255"),
        ((0, 20), False, "no value above 31 of 255"),
        ((0, 0), False, "black"),
        ((0, 65535), True, None),
        ((0, 200), False, None),
    ],
)
def test_pictures_that_are_black_to_the_network_are_noted(
    tmp_path: Path, values: tuple[int, int], deep: bool, wanted: str | None
) -> None:
    pixels = np.random.default_rng(0).integers(values[0], values[1] + 1, (8, 8), np.uint16 if deep else np.uint8)
    pixels[0, 0] = values[1]
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    lines, notes = checked(tmp_path)
    assert lines == []
    dark = [note for note in notes if note.startswith(("black", "nearly black"))]
    assert len(dark) == (wanted is not None)
    assert all(str(wanted) in note for note in dark)


def test_depth_that_is_set_brings_the_range_back(tmp_path: Path) -> None:
    from udit.data.decode import decode

    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "0.png")
    assert decode(tmp_path / "0.png", 8, 1).max() == 15
    assert decode(tmp_path / "0.png", 8, 1, bits=12).max() == 255
    noise(8, 8).save(tmp_path / "8-bit.png")
    assert np.array_equal(decode(tmp_path / "8-bit.png", 8, 3), decode(tmp_path / "8-bit.png", 8, 3, bits=12))


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([1, 2, 3], ["labels run from 1 to 3 and count from 0 here, so class 0 has no image; subtract 1"]),
        ([0, 700, 8000], ["labels run to 8000 and only 3 numbers occur"]),
        ([0, 1, 2, 4], []),
        ([0, 0], []),
    ],
)
def test_labels_that_are_no_class_numbers_are_noted(labels: list[int], wanted: list[str], tmp_path: Path) -> None:
    notes = list(label_notes(np.array(labels)))
    assert len(notes) == len(wanted)
    assert all(part in note for part, note in zip(wanted, notes, strict=True))


@pytest.mark.parametrize("label", [10**12, 2**63])
def test_ids_as_labels_are_one_line(label: int, tmp_path: Path, error_of: ErrorOf) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, label], np.uint64))
    line = error_of("train", "digits", "data.kind=npz", f"data.path={path}", f"out={tmp_path / 'out'}")
    assert f"has labels up to {label}, and 2 different ones in all: ids rather than classes" in line


def test_many_classes_are_shown_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 100_000
    np.savez(tmp_path / "x.npz", images=np.zeros((count, 1, 1), np.uint8), labels=np.arange(count))
    said = succeeds(capsys, "data", "check", str(tmp_path / "x.npz"))
    lines = said.splitlines()
    assert len(lines) < 30
    assert any(line.split() == ["99,980", "more", "99980", "0"] for line in lines)


def test_table_looks_at_each_cell_a_few_times() -> None:
    """Not once for every other cell: its time grows as the number of rows."""
    from udit.cli.output import table

    class Cell(str):
        looked = 0

        def __getitem__(self, key: object) -> str:
            Cell.looked += 1
            return super().__getitem__(key)  # type: ignore[index]

    rows = 1000
    cells = [[Cell("name"), Cell("12")] for _ in range(rows)]
    text = table(("class", "images"), cells)
    assert Cell.looked <= 2 * rows
    assert text.splitlines()[1].endswith("    12")


def test_scores_need_squares_and_say_so_of_the_first(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        noise(16, 24).save(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.png' is 24x16; a score needs squares of one size"):
        list(read_images(tmp_path).chunks())
    assert os.listdir(tmp_path)  # noqa: PTH208 - nothing was removed
