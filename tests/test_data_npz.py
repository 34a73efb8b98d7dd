"""Images in .npz files are read as they were written, and other files are refused in one line."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_files import mutated
from udit.data.config import NpzData
from udit.data.describe import describe
from udit.data.npz import npz_file
from udit.data.sources import parts_of
from udit.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "x.npz", **arrays)
    return path / "x.npz"


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("arr_0", "arr_1"), ("x_train", "y_train")])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_images_come_back_as_they_were_written(tmp_path: Path, images: str, labels: str, write: Any) -> None:
    write(tmp_path / "x.npz", **{images: COLOUR, labels: LABELS.astype(np.uint8)[:, None]})
    source = npz_file(tmp_path / "x.npz")
    assert np.array_equal(source.pixels, COLOUR.transpose(0, 3, 1, 2))
    assert source.labels.tolist() == LABELS.tolist()
    assert source.names[2] == f"{images} 2"
    assert len(source.held_out) == 0


@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 4, 5, 1)])
def test_grey_images_have_one_channel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(tmp_path, images=COLOUR[..., 0].reshape(shape), labels=LABELS)
    assert np.array_equal(npz_file(path).pixels[:, 0], COLOUR[..., 0])
    info = describe(NpzData(path=path))
    assert (info.channels, info.height, info.width, info.id2label) == (1, 4, 5, ("0", "1", "2"))


def test_its_own_test_images_are_held_out(tmp_path: Path) -> None:
    path = saved(tmp_path, train_images=COLOUR, train_labels=LABELS, test_images=COLOUR[:2], test_labels=LABELS[:2])
    data = NpzData(path=path, test_share=None, classes=("a", "b", "c"))
    assert parts_of(data.build(), data).test.tolist() == [6, 7]
    assert describe(data).id2label == ("a", "b", "c")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "other names": ({"pictures": COLOUR, "labels": LABELS}, "holds labels, pictures; it needs arrays named"),
    "floats": ({"images": COLOUR / 255, "labels": LABELS}, "is float64; images are uint8"),
    "two channels": ({"images": COLOUR[..., :2], "labels": LABELS}, "is [6, 4, 5, 2]; images are"),
    "no pictures": ({"images": COLOUR[:0], "labels": LABELS[:0]}, "images of shape [0, 4, 5, 3], which is empty"),
    "too few labels": ({"images": COLOUR, "labels": LABELS[:5]}, "holds 6 images in images and 5 labels"),
    "real labels": ({"images": COLOUR, "labels": LABELS / 2}, "labels are whole numbers"),
    "one hot": ({"images": COLOUR, "labels": np.eye(6, dtype=int)}, "labels are whole numbers [N] or [N, 1]"),
    "negative": ({"images": COLOUR, "labels": LABELS - 1}, "hold -1; labels count from 0"),
    "many classes": ({"images": COLOUR, "labels": LABELS + 1}, "has a label 3 in labels where there are 3 classes"),
    "objects": ({"images": COLOUR, "labels": np.array([object()] * 6)}, "its header says object [6]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_arrays_that_are_not_labelled_images_are_refused(tmp_path: Path, kind: str, one_line: Callable) -> None:
    arrays, said = BAD[kind]
    path = saved(tmp_path, **arrays)
    with pytest.raises(UserError) as caught:
        npz_file(path, 3)
    assert said in one_line(caught.value)
    assert str(path) in str(caught.value)


def test_header_that_promises_more_than_there_is_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8)})
    for body in (b"", bytes(64)):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("images.npy", stream.getvalue() + body)
            archive.writestr("labels.npy", b"")
        for read in (npz_file, lambda path: describe(NpzData(path=path))):
            with pytest.raises(UserError, match=r"header says uint8 \[1099511627776, 8, 8\]"):
                read(tmp_path / "x.npz")


@pytest.mark.parametrize("data", [b"", b"nothing", b"PK\x03\x04" + bytes(60)])
def test_files_that_are_no_archive_are_refused(tmp_path: Path, data: bytes, one_line: Callable) -> None:
    (tmp_path / "x.npz").write_bytes(data)
    for path in (tmp_path / "x.npz", tmp_path / "absent.npz", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read as .npz") as caught:
            npz_file(path)
        one_line(caught.value)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_an_answer_or_one_line_each(tmp_path: Path, count: int) -> None:
    path = saved(tmp_path, images=COLOUR[:2, :2], labels=LABELS[:2].astype(np.int8))
    whole, random = path.read_bytes(), np.random.default_rng(0)
    told = 0
    for _ in range(count):
        path.write_bytes(mutated(whole, random))
        try:
            npz_file(path)
        except UserError as error:
            assert "\n" not in str(error)
            told += 1
    assert 0.3 * count < told < count
