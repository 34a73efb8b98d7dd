"""Folders as people have them: what is read, what is left out, and what is said; a sound folder gets no remark."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from conftest import ErrorOf, succeeds
from image_files import noise
from udit.data import listing
from udit.data.check import Contents, check, check_folder
from udit.data.config import FolderData, NpzData
from udit.data.listing import Listing, image_files
from udit.data.notes import EXAMPLES, Notes, label_notes
from udit.errors import UserError
from udit.evaluation.sets import read_images
from udit.images import save_png

LEFT = "hidden folders, and those that systems and programs make, are left out; rename one that is a class"
HIDDEN = "hidden images are left out"
LOOSE = "itself belong to no class and are left out"
SKIPPED = "skipped: unsupported extension"
LABELS = "label files are not read, a class is a folder"
PARTS = "look like parts of a data set, whose folders are the classes; give data.root="
DEEPER = "look like the classes; if so, give data.root="
NESTED = "folders named like parts of a data set, inside class folders, are read as one; if they are"
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
    "a Mac's root": Case([*CD, "._cover.png", ".trash.jpg"], SOUND, [HIDDEN]),
    "a Synology": Case([*CD, "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir/dog/0.jpg"], SOUND, [LEFT]),
    "a QNAP": Case([*CD, "@Recycle/old/1.png", "#recycle/2.png"], SOUND, [LEFT]),
    "a Windows disk": Case([*CD, "$RECYCLE.BIN/S-1-5/1.png", "System Volume Information/x"], SOUND, [LEFT]),
    "a file manager's thumbnails": Case([*CD, ".thumbnails/cat/0.png", ".xvpics/1.png"], SOUND, [LEFT]),
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
    "COCO's names": Case(many("train2017", "val2017"), {"train2017": 2, "val2017": 2}, ["have names of parts"]),
    "two levels too deep": Case(many("a/images/cat", "a/images/dog"), {"a": 4}, ["/data/a/images"]),
    "a stray picture": Case([*many("train/cat", "test/cat"), "train/x.png"], {"test": 2, "train": 3}, [PARTS]),
    "parts without classes": Case(
        many("train/images", "val/images"), {"train": 2, "val": 2}, ["without class folders; sort the images into one"]
    ),
    "a tube": Case(many("test_tube", "flask"), {"flask": 2, "test_tube": 2}),
    "splits beside classes": Case([*CD, *many("test/cat", "test/dog")], {**SOUND, "test": 4}, [PARTS]),
    "splits without classes": Case(many("train", "test"), {"test": 2, "train": 2}, ["have names of parts"]),
    "validation as a class": Case(many("train", "validation", "dog"), {"dog": 2, "train": 2, "validation": 2}),
    "parts inside classes": Case(
        many("cat/train", "cat/test", "dog/train", "dog/test"), {"cat": 4, "dog": 4}, [NESTED]
    ),
    "a class train": Case(many("bus", "car", "train"), {"bus": 2, "car": 2, "train": 2}),
    "a camera's card": Case(many("DCIM/100CANON", "DCIM/101CANON", suffix="JPG"), {"DCIM": 4}, [DEEPER]),
    "Lightroom": Case([*CD, "cat/0.xmp", "dog/1.CR2"], SOUND, [SKIPPED]),
    # labels in files
    "a table of labels": Case([*CD, "labels.csv"], SOUND, [LABELS]),
    "Hugging Face's metadata": Case([*CD, "metadata.jsonl"], SOUND, [LABELS]),
    "lists of splits": Case([*CD, "train.txt", "val.txt", "classes.txt"], SOUND, [LABELS]),
    "captions": Case([*CD, "cat/0.txt", "cat/1.txt"], SOUND, [SKIPPED]),
    "LabelMe": Case([*CD, "cat/0.json"], SOUND, [SKIPPED]),
    "CVAT": Case([*many("images"), "annotations.xml"], {"images": 2}, [LABELS]),
    "VGG's annotator": Case([*CD, "via_region_data.json", "via_project.json"], SOUND, [LABELS]),
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
    "other formats": Case([*CD, "cat/2.jp2", "cat/3.bmp", "dog/4.psd"], SOUND, [SKIPPED]),
}
REFUSED = {
    "COCO": (
        ["images/0.jpg", "annotations/instances.json"],
        "/annotations' holds no PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC; add some or",
    ),
    "YOLO": (
        [*many("images/train"), "labels/train/0.txt"],
        "/labels' holds no PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC; add some or",
    ),
    "Label Studio": (
        [*many("images"), "labels/0.txt", "classes.txt", "notes.json"],
        "/labels' holds no PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC; add some or remove it",
    ),
    "Oxford Pets": (
        ["images/Abyssinian_1.jpg", "annotations/list.txt"],
        "annotations' holds no PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC; add some or",
    ),
    "an empty class": (
        [*CD, "bird/"],
        "/bird' holds no PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC; add some or remove it",
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
    found = Listing.of(lay_out(tmp_path / "data", files, picture))
    assert dict(zip(found.classes, found.counts, strict=True)) == classes
    notes = list(found.notes)
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
    FolderData(root=root, size=8).build()
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
    assert f"{LEFT} (2 folders" in caplog.text
    assert f"{HIDDEN} (1 file" in caplog.text


def test_linked_class_and_a_picture_called_grid_are_scored_as_they_are_trained_on(
    tmp_path: Path, picture: bytes
) -> None:
    root = lay_out(tmp_path / "data", ["a/grid.png", "b/1.png", ".x/2.png", "c -> .x"], picture)
    trained = [str(root / name) for name in Listing.of(root).names]
    assert [str(path) for path in image_files(root)] == trained
    assert len(read_images(root)) == len(trained) == 3


def test_overview_of_samples_is_no_sample(tmp_path: Path, picture: bytes) -> None:
    lay_out(tmp_path / "samples", ["000000.png", "000001.png"], picture)
    save_png(noise(8, 8), tmp_path / "samples" / "grid.png", {"model": "x"})
    assert len(read_images(tmp_path / "samples")) == 2


def test_scoring_tells_of_images_that_training_would_leave_out(
    tmp_path: Path, picture: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    read_images(lay_out(tmp_path / "flat", ["1.png", "2.png"], picture))
    read_images(lay_out(tmp_path / "classes", CD, picture))
    assert caplog.text == ""
    root = lay_out(tmp_path / "both", [*CD, "cover.png"], picture)
    assert len(read_images(root)) == 5
    assert "images in the folder itself are scored with those below it, and training leaves them out (1 file" in (
        caplog.text
    )


# ---- what only decoding tells ----------------------------------------------------------------------------------------


def checked(root: Path) -> tuple[list[str], list[str]]:
    """Lines and notes of a check."""
    contents = Contents()
    return list(check_folder(FolderData(root=root, size=8), contents)), list(contents.notes)


@pytest.mark.parametrize(
    ("values", "deep", "wanted"),
    [
        ((0, 4095), True, "nearly black: the largest value of all 16-bit files is 4095 of 65535; set data.bits=12"),
        ((0, 16383), True, "dark: the largest value of all 16-bit files is 16383 of 65535; set data.bits=14"),
        ((0, 1), True, "values 0 and 1 only, as masks have; multiply them by 65535"),
        ((0, 1), False, "values 0 and 1 only, as masks have; multiply them by 255"),
        ((0, 20), False, "no value above 31 of 255; scale them"),
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
    dark = [note for note in notes if note.startswith(("black", "nearly black", "dark"))]
    assert len(dark) == (wanted is not None)
    assert all(str(wanted) in note for note in dark)


@pytest.mark.parametrize(
    ("most", "bits", "wanted"),
    [
        (4095, 12, None),
        (500, 12, "nearly black: the largest value of all 16-bit files is 500 of 4095; set data.bits=9 ("),
        (4096, 12, "too bright for 12 bits: the largest value of all is 4096; set data.bits=13 ("),
    ],
)
def test_depth_that_is_said_is_held_to(
    tmp_path: Path, most: int, bits: int, wanted: str | None, capsys: pytest.CaptureFixture[str], error_of: ErrorOf
) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.linspace(0, most, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / "a" / "0.png")
    said = succeeds(capsys, "data", "check", str(tmp_path), "--size", "8", "--bits", str(bits))
    assert (f"note: {wanted}" in said) if wanted else "data.bits" not in said
    assert "--bits is 17; it must be 8 to 16" in error_of("data", "check", str(tmp_path), "--bits", "17")


def test_one_depth_is_named_for_all_deep_files(tmp_path: Path) -> None:
    """That of the brightest: a smaller one would make the others white."""
    (tmp_path / "a").mkdir()
    for i, most in enumerate((4095, 3000, 700, 200, 0)):
        values = np.linspace(0, most, 64).astype(np.uint16).reshape(8, 8)
        Image.fromarray(values).save(tmp_path / "a" / f"{i}.png")
    _, notes = checked(tmp_path)
    [depth] = [note for note in notes if "data.bits" in note]
    assert depth.startswith("nearly black: the largest value of all 16-bit files is 4095 of 65535; set data.bits=12 (5")
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "a" / "white.png")
    _, notes = checked(tmp_path)
    assert not any("data.bits" in note for note in notes)
    assert any(note.startswith("nearly black: no value above 31 of 255") and "(4 files" in note for note in notes)
    assert any(note.startswith("black") and "(1 file," in note for note in notes)


@pytest.mark.parametrize(
    ("most", "wanted"),
    [
        (1, ["nearly black: values 0 and 1 only, as masks have; multiply them by 255"]),
        (16, ["nearly black: no value above 31 of 255; scale them"]),
        (0, ["black: no value above 0"]),
        (200, []),
    ],
)
def test_array_that_is_black_to_the_network_is_noted_by_check_and_training(
    most: int, wanted: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = np.zeros((6, 8, 8), np.uint8)
    images[0, 0, 0] = most
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(6) % 2)
    contents = Contents()
    assert list(check(tmp_path / "x.npz", 8, contents)) == []
    notes = list(contents.notes)
    assert len(notes) == len(wanted)
    assert all(part in note for part, note in zip(wanted, notes, strict=True))
    NpzData(path=tmp_path / "x.npz").build()
    assert [record.getMessage() for record in caplog.records] == [f"data: {note}" for note in notes]


def test_class_that_only_the_test_images_have_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = np.full((4, 8, 8), 200, np.uint8), np.array([0, 1, 2, 3])
    path = tmp_path / "x.npz"
    np.savez(path, train_images=images, train_labels=labels % 3, test_images=images, test_labels=labels)
    contents = Contents()
    assert list(check(path, 8, contents)) == []
    [note] = contents.notes
    assert note.startswith("classes without an image to train on") and "(1 class, e.g. 3)" in note


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
        ([0, 700, 8000], ["labels run to 8000 and only 3 occur, so most"]),
        ([0, 1, 2, 4, 5, 7], ["classes without an image to train on", "(2 classes, e.g. 3, 6)"]),
        ([0, 0], []),
        ([2, 1, 0], []),
    ],
)
def test_labels_that_are_no_class_numbers_are_noted(labels: list[int], wanted: list[str], tmp_path: Path) -> None:
    notes = list(label_notes(np.array(labels)))
    assert len(notes) == bool(wanted)
    assert all(part in notes[0] for part in wanted)


def test_named_class_without_an_image_is_noted() -> None:
    [note] = label_notes(np.array([0, 1, 0, 1]), 3)
    assert note.startswith("classes without an image to train on") and "(1 class, e.g. 2)" in note


@pytest.mark.parametrize("label", [10**12, 2**63])
def test_ids_as_labels_are_one_line(label: int, tmp_path: Path, error_of: ErrorOf) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=np.zeros((2, 4, 4), np.uint8), labels=np.array([0, label], np.uint64))
    line = error_of("train", "digits", "data.kind=npz", f"data.path={path}", f"out={tmp_path / 'out'}")
    assert f"hold labels up to {label}, and 2 different ones in all: ids rather than classes" in line


def test_many_classes_are_shown_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 100_000
    np.savez(tmp_path / "x.npz", images=np.zeros((count, 1, 1), np.uint8), labels=np.arange(count))
    said = succeeds(capsys, "data", "check", str(tmp_path / "x.npz"))
    lines = said.splitlines()
    assert len(lines) < 30
    assert any(line.split() == ["99,980", "more", "99980", "0"] for line in lines)


def test_layout_of_many_classes_takes_one_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: Counter[str] = Counter()

    def plain(name: str) -> str:
        looked[name] += 1
        return name

    monkeypatch.setattr(listing, "_plain", plain)
    names = [f"class {i}" for i in range(1000)]
    notes = Notes()
    listing._tell_of_layout(Path("data"), names, [Counter({"": 1})] * 1000, notes)
    assert list(notes) == []
    assert looked == Counter(names)


def test_gaps_in_many_labels_are_one_remark() -> None:
    labels = np.arange(100_000)
    [note] = label_notes(labels[labels % 3 > 0] - 1)
    assert note.endswith("(33,332 classes, e.g. 2, 5, 8)")


def test_check_does_not_call_a_noted_folder_free_of_problems(
    tmp_path: Path, picture: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    root = lay_out(tmp_path / "noted", ["cat/0.png", "cover.png", "labels.csv"], picture)
    assert succeeds(capsys, "data", "check", str(root), "--size", "8").endswith("no bad images; see the 2 notes\n")
    (root / "labels.csv").unlink()
    assert succeeds(capsys, "data", "check", str(root), "--size", "8").endswith("no bad images; see the note\n")
    (root / "cover.png").unlink()
    assert succeeds(capsys, "data", "check", str(root), "--size", "8").endswith("no problems found\n")


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


def test_scores_need_images_of_one_size_which_may_be_no_square(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        noise(16, 24).save(tmp_path / name)
    (chunk,) = read_images(tmp_path).chunks()
    assert chunk.shape == (2, 3, 16, 24)
    assert np.array_equal(chunk[0].transpose(1, 2, 0), np.asarray(noise(16, 24)))
    noise(24, 16).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"c\.png' is 16x24 and the first, .*a\.png', is 24x16; a score needs images"):
        list(read_images(tmp_path).chunks())
