"""`udit data check` names everything that training would refuse, and training refuses it before its first step."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import ErrorOf, succeeds
from image_files import folder, garments, noise, peak_megabytes, troubled
from udit.cli import main
from udit.data.config import FolderData
from udit.data.decode import KNOWN
from udit.data.encoded import verified_as
from udit.data.folder import records

CHECK = "from udit.cli import main; main(['data', 'check', sys.argv[1]])"
TRAIN = "from udit.cli import main; main(['train', 'folder', 'data.size=64', f'data.root={sys.argv[1]}', sys.argv[2]])"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_every_bad_file_is_one_line_in_little_memory(tmp_path: Path) -> None:
    root = troubled(tmp_path / "data")
    assert (root / "class-4" / "bomb.png").stat().st_size < 10_000
    code, out, errors, megabytes = peak_megabytes(CHECK, root)
    assert (code, errors) == (1, "")
    lines = out.splitlines()
    assert lines[:3] == [
        f"class folder '{root}/empty' holds no {KNOWN}; add some or remove it",
        f"image '{root}/class-2/3.png' cannot be read (image file is truncated); replace or remove it",
        f"image '{root}/class-4/bomb.png' is larger than 50 million pixels; shrink or remove it",
    ]
    assert lines[-3:] == [
        "sizes: 54 of 64x64; shorter sides 64 to 64",
        f"note: CMYK, converted to RGB without its colour profile (1 file, e.g. '{root}/class-7/cmyk.jpg')",
        "3 bad",
    ]
    assert re.search(r"^class-2 +6 +1$", out, re.MULTILINE)
    assert re.search(r"^all +56 +2$", out, re.MULTILINE)
    assert 20 < megabytes < 150


@pytest.mark.slow
def test_training_refuses_each_of_them_before_the_first_step_in_little_memory(tmp_path: Path) -> None:
    root, out = troubled(tmp_path / "data"), tmp_path / "out"
    for bad, said in {
        root / "empty": f"class folder '{root}/empty' holds no PNG",
        root / "class-2" / "3.png": f"image '{root}/class-2/3.png' cannot be read (image file is truncated)",
        root / "class-4" / "bomb.png": f"image '{root}/class-4/bomb.png' is larger than 50 million pixels",
    }.items():
        code, said_out, errors, megabytes = peak_megabytes(TRAIN, root, f"out={out}")
        assert (code, said_out) == (2, "")
        [line] = errors.splitlines()
        assert line.startswith(f"udit: error: {said}")
        assert 20 < megabytes < 150
        assert not out.exists()
        shutil.rmtree(bad) if bad.is_dir() else bad.unlink()


def test_what_is_converted_is_noted_with_an_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "data", a=2)
    root = tmp_path / "data" / "a"
    shutil.copy(root / "1.png", root / "again.png")
    Image.new("RGBA", (8, 8)).save(root / "clear.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "deep.png")
    noise(8, 8).save(root / "moving.gif", save_all=True, append_images=[noise(8, 8, seed=1)])
    exif = Image.Exif()
    exif[0x0112] = 3
    noise(8, 8).save(root / "turned.jpg", exif=exif)
    (root / "notes.txt").write_text("")
    said = succeeds(capsys, "data", "check", str(tmp_path / "data"))
    assert "formats: 5 PNG, 1 GIF, 1 JPEG\n" in said
    assert "sizes: 4 of 8x8, 3 of 12x10; shorter sides 8 to 10\n" in said
    for line in (
        f"copy of another file (1 file, e.g. '{root}/again.png' of '{root}/1.png')",
        f"transparent, composited on white (1 file, e.g. '{root}/clear.png')",
        f"16-bit, reduced to 8 bits (1 file, e.g. '{root}/deep.png')",
        f"animated, reduced to the first frame (1 file, e.g. '{root}/moving.gif')",
        f"rotated upright by EXIF (1 file, e.g. '{root}/turned.jpg')",
        f"skipped: unsupported extension (1 file, e.g. '{root}/notes.txt')",
    ):
        assert f"note: {line}\n" in said
    assert said.endswith("no bad images; see the 7 notes\n")


def test_names_that_cannot_be_printed_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = tmp_path / "data" / "line\nbreak \udcff"
    strange.mkdir(parents=True)
    noise(8, 8).save(strange / "0.png")
    (strange / "1.png").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "data")])
    said = capsys.readouterr().out
    assert ended.value.code == 1
    assert "/line\\nbreak \\udcff/1.png' cannot be read" in said
    assert len(said.splitlines()) == 7


def test_folder_that_passes_is_remembered_until_a_file_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "data", a=2)

    def remembered(size: int) -> bool:
        data = FolderData(root=root, size=size)
        return verified_as(records(data), data).exists()

    assert not remembered(32)
    succeeds(capsys, "data", "check", str(root), "--size", "32")
    assert remembered(32)
    assert not remembered(64)
    (root / "a" / "1.png").touch()
    assert not remembered(32)


def test_idx_files_and_npz_are_counted_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = succeeds(capsys, "data", "check", str(garments(tmp_path / "idx")))
    assert re.search(r"^0 +4 +0\n", said, re.MULTILINE)
    assert re.search(r"^test images +10 +0\n", said, re.MULTILINE)
    assert "sizes: 50 of 28x28" in said
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 6, 5, 3), np.uint8), labels=np.array([0, 1, 1, 1]))
    said = succeeds(capsys, "data", "check", str(tmp_path / "x.npz"))
    assert re.search(r"^1 +3 +0\n", said, re.MULTILINE)
    assert "sizes: 4 of 5x6" in said


@pytest.mark.parametrize("name", ["x.npz", "train-labels-idx1-ubyte"])
def test_file_that_is_bad_as_a_whole_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    garments(tmp_path, packed=False)
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / name if name.endswith("npz") else tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert str(tmp_path / name) in said[0]
    assert said[-1] == "1 bad"


def test_nothing_to_check_is_an_error(tmp_path: Path, error_of: ErrorOf) -> None:
    assert "no folder" in error_of("data", "check", str(tmp_path / "absent"))
    assert "holds no class folders" in error_of("data", "check", str(tmp_path))
    for name in ("1.jxl", "2.jxl", "3.psd"):
        (tmp_path / name).touch()
    said = error_of("data", "check", str(tmp_path))
    assert "holds no PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC, but 2 .jxl, 1 .psd; convert them" in said


def test_16_bits_that_are_kept_are_not_said_to_be_reduced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "images"
    root.mkdir()
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(root / "1.tiff")
    assert "16-bit, reduced to 8 bits" in succeeds(capsys, "data", "check", str(root))
    assert "no problems found" in succeeds(capsys, "data", "check", str(root), "data.deep=true")
