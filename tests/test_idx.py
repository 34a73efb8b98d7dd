"""IDX files are read as MNIST ships them, and other files are refused in one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_files import garments, idx
from udit.data.config import FashionMnistData, IdxData
from udit.data.describe import describe
from udit.data.idx import idx_files, read
from udit.errors import UserError
from udit.run.recipes import load_run

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [True, False])
def test_images_and_labels_come_back_as_they_were_written(tmp_path: Path, packed: bool) -> None:
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    idx(tmp_path, "train", images, np.array([1, 0]), packed)
    source = idx_files(tmp_path, 2)
    assert np.array_equal(source.pixels[:, 0], images)
    assert source.labels.tolist() == [1, 0]
    assert list(source.names) == ["train 0", "train 1"]
    assert len(source.held_out) == 0


def test_test_files_are_held_out(tmp_path: Path) -> None:
    source = idx_files(garments(tmp_path, 7, 3), 10)
    assert source.held_out.tolist() == [7, 8, 9]
    assert source.names[7] == "t10k 0"


def test_padding_puts_the_image_in_the_middle_of_black(tmp_path: Path) -> None:
    idx(tmp_path, "train", np.full((1, 3, 2), 9), np.array([0]))
    padded = idx_files(tmp_path, 1, 6).pixels[0, 0]
    assert np.argwhere(padded == 9).min(0).tolist() == [1, 2]
    assert np.argwhere(padded == 9).max(0).tolist() == [3, 3]
    assert padded.sum() == 9 * 6
    with pytest.raises(UserError, match=r"data.size is 2 and the images are 3x2; give 3 or more"):
        idx_files(tmp_path, 1, 2)


def test_config_says_what_the_files_hold_without_reading_an_image(tmp_path: Path) -> None:
    garments(tmp_path)
    info = describe(IdxData(root=tmp_path))
    assert (info.channels, info.height, info.width, info.id2label) == (1, 28, 28, tuple("0123456789"))
    assert describe(FashionMnistData(root=tmp_path, size=32)).height == 32
    assert describe(FashionMnistData(root=tmp_path)).id2label[9] == "ankle boot"
    assert FashionMnistData(root=tmp_path, size=32).build().image(0).shape == (1, 32, 32)


def test_recipe_pads_to_what_its_model_takes(tmp_path: Path) -> None:
    run = load_run("fashion-mnist", [f"data.root={garments(tmp_path)}"])
    assert (run.data.size, run.codec.kind) == (32, "space-to-depth")
    assert (run.model.size, run.model.in_channels, run.model.num_classes) == ((16, 16), 4, 10)


def test_fashion_mnist_that_is_not_installed_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    for asks in (lambda: describe(FashionMnistData()), FashionMnistData(size=32).build):
        with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist"):
            asks()


def test_fashion_mnists_classes_at_a_given_size_are_known_without_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    info = describe(load_run("fashion-mnist").data)
    assert (info.height, info.width, len(info.id2label)) == (32, 32, 10)


def header(*shape: int, magic: bytes | None = None) -> bytes:
    return (magic or bytes((0, 0, 8, len(shape)))) + np.array(shape, ">u4").tobytes()


BAD = {
    "empty": (b"", "starts with nothing"),
    "a picture": (
        b"\x89PNG\r\n\x1a\n" + bytes(99),
        "starts with 89504e47, but an IDX file of bytes in 3 dimensions starts",
    ),
    "labels for pictures": (header(6) + bytes(6), "starts with 00000801, but an IDX"),
    "floats": (header(1, 2, 2, magic=b"\0\0\x0d\x03") + bytes(16), "starts with 00000d03, but an IDX"),
    "half a header": (header(5, 5, 5)[:9], "ends within its header"),
    "torn": (header(2, 4, 4) + bytes(31), "has a header for 32 bytes and holds only 31"),
    "more behind": (header(2, 4, 4) + bytes(33), "has a header for 32 bytes and holds more"),
    "nothing in it": (header(0, 4, 4), "has a header for 0x4x4 bytes"),
    "absurd": (header(*[2**32 - 1] * 3), "has a header for 4294967295x4294967295x4294967295 bytes"),
    "large": (header(2**16, 2**8, 2**8), "has a header for 4,294,967,296 bytes and holds only 0"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", BAD)
def test_file_that_is_no_idx_is_a_one_line_error(tmp_path: Path, kind: str, packed: bool, one_line: Callable) -> None:
    data, said = BAD[kind]
    idx(tmp_path, "train", np.zeros((2, 4, 4)), np.zeros(2), packed)
    path = tmp_path / (IMAGES + ".gz" * packed)
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError) as caught:
        idx_files(tmp_path, 10)
    assert f"{path} {said}" in one_line(caught.value)


def test_truncated_or_false_gzip_is_a_one_line_error(tmp_path: Path, one_line: Callable) -> None:
    path = garments(tmp_path) / f"{IMAGES}.gz"
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:1000] + bytes(100) + whole[1100:], header(1, 2, 2) + bytes(4)):
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            idx_files(tmp_path, 10)
        assert f"{path} cannot be read" in one_line(caught.value)


def test_files_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"holds no {IMAGES}, plain or .gz"):
        idx_files(tmp_path, 10)
    garments(tmp_path)
    with pytest.raises(UserError, match=r"has a label 9 where there are 5 classes.*data.classes"):
        idx_files(tmp_path, 5)
    idx(tmp_path, "t10k", np.zeros((3, 8, 8)), np.zeros(3))
    with pytest.raises(UserError, match=r"8x8 and do not match the train file's; give data.size"):
        idx_files(tmp_path, 10)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="holds no t10k-labels"):
        idx_files(tmp_path, 10)
    idx(tmp_path, "train", np.zeros((3, 8, 8)), np.zeros(4))
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"holds 3 images and .* 4 labels"):
        idx_files(tmp_path, 10)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("idx") / "x"
    path.write_bytes(b"\0\0\x08\x01" + data)
    try:
        assert len(read(path, 1)) == len(data) - 4
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.slow
def test_debians_fashion_mnist_is_found_in_its_place() -> None:
    data = FashionMnistData(size=32)
    source = data.build()
    assert source.pixels.shape == (70_000, 1, 32, 32)
    assert np.bincount(source.labels[:60_000]).tolist() == [6_000] * 10
    assert np.bincount(source.labels[source.held_out]).tolist() == [1_000] * 10
    assert source.pixels[:, :, 2:30, 2:30].astype(np.int64).sum() == source.pixels.astype(np.int64).sum()
    assert source.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
