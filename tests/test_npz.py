"""ADM's files are read as they were written, and damaged ones are refused in one line."""

from __future__ import annotations

import contextlib
import io
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udit.errors import UserError
from udit.evaluation import npz
from udit.evaluation.frechet import Statistics

OneLine = Callable[[BaseException], str]


def statistics(width: int = 4) -> Statistics:
    return Statistics.of(np.random.default_rng(0).standard_normal((40, width)))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Images, labels, both statistics and a note."""
    path = tmp_path / "whole.npz"
    images = np.random.default_rng(1).integers(0, 256, (6, 3, 4, 4), np.uint8)
    npz.write(path, images=images, labels=np.arange(6), pool=statistics(), spatial=statistics(3), facts={"count": 6})
    return path


def test_what_is_written_is_read(whole: Path) -> None:
    found = npz.read(whole)
    assert found.images is not None
    assert found.labels is not None
    assert found.images.shape == (6, 3, 4, 4)
    assert found.labels.tolist() == list(range(6))
    assert found.pool is not None
    assert found.spatial is not None
    assert np.array_equal(found.pool.cov, statistics().cov)
    assert np.array_equal(found.spatial.mean, statistics(3).mean)
    assert found.facts == {"count": 6}


def test_keys_and_layout_are_adms(whole: Path) -> None:
    with np.load(whole) as file:
        assert {"arr_0", "arr_1", "mu", "sigma", "mu_s", "sigma_s"} <= set(file)
        assert file["arr_0"].shape == (6, 4, 4, 3)
        assert file["sigma"].dtype == np.float64


def test_files_of_plain_numpy_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8), np.array([1, 2], np.int32))
    found = npz.read(tmp_path / "a.npz")
    assert found.images is not None
    assert found.images.shape == (2, 3, 4, 4)
    np.savez(tmp_path / "b.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3, dtype=np.float32))
    stored = npz.read(tmp_path / "b.npz")
    assert stored.images is None
    assert stored.pool is not None
    assert stored.pool.count is None


SLIPS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"other": np.zeros(2)}, "needed are images (arr_0) or statistics"),
    "floats": ({"arr_0": np.zeros((2, 4, 4, 3))}, "needed is uint8 [N, H, W, 1 or 3]"),
    "channels first": ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "needed is uint8 [N, H, W, 1 or 3]"),
    "labels": ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, int)}, "it holds one label per image"),
    "half a reference": ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "mu": np.zeros(3)}, "only one of mu and sigma"),
    "NaN": ({"mu": np.array([np.nan]), "sigma": np.eye(1)}, "mu is float64 and must be finite"),
    "shapes": ({"mu": np.zeros(3), "sigma": np.eye(4)}, "mu is [3] and sigma is [4, 4]"),
    "asymmetry": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [0, 1]])}, "sigma is not symmetric"),
    "note": ({"mu": np.zeros(1), "sigma": np.eye(1), "udit": np.array("[1]")}, "is not a JSON object"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_wrong_contents_are_refused(tmp_path: Path, slip: str, one_line: OneLine) -> None:
    arrays, text = SLIPS[slip]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError) as error:
        npz.read(tmp_path / "x.npz")
    assert text in one_line(error.value)


def test_objects_are_not_opened(tmp_path: Path, one_line: OneLine) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "x.npz", arr_0=np.array([Trap()], object), mu=np.array([Trap()], object))
    with pytest.raises(UserError, match="holds Python objects") as error:
        npz.read(tmp_path / "x.npz")
    one_line(error.value)
    assert not (tmp_path / "sprung").exists()


def test_header_is_believed_no_further_than_its_bytes(tmp_path: Path, one_line: OneLine) -> None:
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 9, 9, 3)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", member.getvalue() + b"1234")
    with pytest.raises(UserError, match="bytes are not") as error:
        npz.read(tmp_path / "x.npz")
    one_line(error.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        npz.read(tmp_path / "none.npz")


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(Exception, match="cannot write"):
        npz.write(tmp_path / "x.npz", pool=statistics())
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def mutant(rng: random.Random, whole: bytes) -> bytes:
    """The file with bytes changed, cut out or put in, mostly where headers are; or with another array header."""
    data = bytearray(whole)
    kind = rng.randrange(4)
    if kind == 0:  # the text of an array's header, its length kept, so that the archive around it stays as it was
        members = [i for i in range(len(data)) if data[i : i + 6] == b"\x93NUMPY"]
        start = rng.choice(members)
        for _ in range(rng.randint(1, 4)):
            data[start + rng.randrange(128)] = rng.choice(b"0123456789(),:'{}|<>OuifbSUV[] \x00\xff")
    elif kind == 1:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        for _ in range(rng.randint(1, 4)):  # the archive's own directory, at the end
            data[-1 - rng.randrange(600)] = rng.randrange(256)
    else:
        place, length = rng.randrange(len(data)), rng.randrange(200)
        data[place : place + length] = rng.randbytes(rng.randrange(200))
    return bytes(data)


def without_checksum(data: bytes) -> bytes:
    """The same with checksums that fit, so that changed headers get as far as numpy."""
    source, target = io.BytesIO(data), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            raw = data[info.header_offset + 30 + len(info.filename) :][: info.file_size]
            start = raw.find(b"\x93NUMPY")
            new.writestr(info.filename, raw[max(0, start) :])
    return target.getvalue()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutations", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_give_an_answer_or_one_line(
    whole: Path, tmp_path: Path, one_line: OneLine, mutations: int
) -> None:
    rng, original, path = random.Random(0), whole.read_bytes(), tmp_path / "mutant.npz"
    told = slowest = 0.0
    for i in range(mutations):
        data = mutant(rng, original)
        if i % 2:
            with contextlib.suppress(zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
                data = without_checksum(data)
        path.write_bytes(data)
        began = time.perf_counter()
        try:
            npz.read(path)
        except UserError as error:
            one_line(error)
            told += 1
        slowest = max(slowest, time.perf_counter() - began)
    assert told > mutations / 3
    assert slowest < 5
