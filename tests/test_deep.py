"""Files of 16 bits keep them where that is asked for, in grey and in colour."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_files import png
from udit.data.config import FolderData, HubData
from udit.data.decode import decode
from udit.data.deep import decode_deep
from udit.errors import UserError

VALUES = np.random.default_rng(0).integers(0, 65536, (8, 8, 4)).astype(np.uint16)
RGB = VALUES[..., :3]
WANTED = RGB.transpose(2, 0, 1) * (255 / 65535)
STEP = 255 / 65535
"""What one step of 16 bits is in 0..255."""


def deep_png(values: np.ndarray, kind: int) -> io.BytesIO:
    """A 16-bit PNG of colour type 2 (RGB), 4 (grey with alpha) or 6 (RGBA)."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return io.BytesIO(png(struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0), zlib.compress(rows)))


def deep_tiff(values: np.ndarray, order: str) -> io.BytesIO:
    """An uncompressed 16-bit RGB TIFF in one byte order (TIFF 6.0, section 6)."""
    height, width, samples = values.shape
    data = values.astype(f"{order}u2").tobytes()
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, samples, 8), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 8 + 6), (277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, len(data))),
    ]
    begin = 8 + 6 + len(data)
    words = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + struct.pack(f"{order}I" if kind == 4 or count > 1 else f"{order}Hxx", value)
        for tag, kind, count, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, begin)
    depths = struct.pack(f"{order}{samples}H", *[16] * samples)
    return io.BytesIO(head + depths + data + struct.pack(f"{order}H", len(tags)) + words + bytes(4))


@pytest.mark.parametrize(
    "file",
    [deep_png(RGB, 2), deep_tiff(RGB, "<"), deep_tiff(RGB, ">")],
    ids=["png", "little-endian tiff", "big-endian tiff"],
)
def test_colour_of_16_bits_comes_back_as_it_was_written(file: io.BytesIO) -> None:
    found = decode_deep(file, 8, 3, "it")
    assert found.dtype == np.float32
    assert np.abs(found - WANTED).max() < STEP / 100
    file.seek(0)
    assert np.array_equal(decode(file, 8, 3, "it"), (RGB >> 8).transpose(2, 0, 1))


def test_transparency_of_16_bits_is_composited_on_white() -> None:
    alpha = VALUES[..., 3] / 65535
    found = decode_deep(deep_png(VALUES, 6), 8, 3, "it")
    assert np.abs(found - (WANTED * alpha + 255 * (1 - alpha))).max() < STEP


def test_grey_of_fewer_bits_is_white_at_their_largest_value(tmp_path: Path) -> None:
    grey = VALUES[..., 0] >> 4
    Image.fromarray(grey).save(tmp_path / "x.png")
    found = decode_deep(tmp_path / "x.png", 8, 1, bits=12)
    assert np.abs(found[0] - grey * (255 / 4095)).max() < STEP
    assert np.array_equal(decode_deep(tmp_path / "x.png", 8, 3, bits=12)[2], found[0])


def test_colour_becomes_grey_by_luma_in_all_bits() -> None:
    found = decode_deep(deep_png(RGB, 2), 8, 1, "it")
    assert np.abs(found[0] - np.tensordot([0.299, 0.587, 0.114], WANTED, 1)).max() < STEP


def test_files_of_8_bits_are_what_decode_makes_of_them(tmp_path: Path) -> None:
    small = Image.fromarray(VALUES[..., :3].astype(np.uint8))
    small.save(tmp_path / "x.png")
    assert np.array_equal(decode_deep(tmp_path / "x.png", 8, 3), decode(tmp_path / "x.png", 8, 3))
    halved = decode_deep(tmp_path / "x.png", 4, 3) - decode(tmp_path / "x.png", 4, 3).astype(np.float32)
    assert np.abs(halved).max() < 1.5  # rounded once, not after each step


def test_what_has_no_white_or_no_layout_is_refused_in_one_line(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(UserError, match=r"x.tiff' holds real numbers, of which none is white"):
        decode(tmp_path / "x.tiff", 8, 3)
    with pytest.raises(UserError, match=r"'it' is 16-bit grey with transparency.*set data.deep=false"):
        decode_deep(deep_png(VALUES[..., :2], 4), 8, 3, "it")
    with pytest.raises(ValueError, match="streaming keeps 8 bits"):
        HubData(path="a/b", streaming=True, deep=True)


def test_scores_see_8_bits() -> None:
    assert FolderData(root=Path("x"), deep=True).scored() == FolderData(root=Path("x"))
