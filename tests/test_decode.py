"""Pictures of any kind are read the same way every time, and what cannot be read is told in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pictures import noise
from udit.data.decode import FORMATS, centre_crop, decode
from udit.errors import UserError


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    noise(24, 20).save(stream, kind)
    return stream.getvalue()


ENCODED = {kind: encoded(kind) for kind in FORMATS}


def test_exif_orientation_turns_the_picture(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255  # bright at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the top is at the right
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    turned = decode(tmp_path / "x.png", 16, 1)[0]
    assert (turned[:, 8:] == 255).all()
    assert (turned[:, :8] == 0).all()


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparency_lies_on_white(tmp_path: Path, suffix: str) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / f"x.{suffix}", lossless=True)
    assert (decode(tmp_path / f"x.{suffix}", 8, 3) == 255).all()


def test_half_transparency_mixes_with_white(tmp_path: Path) -> None:
    Image.new("LA", (8, 8), (0, 128)).save(tmp_path / "x.png")
    assert np.abs(decode(tmp_path / "x.png", 8, 1).astype(int) - 127).max() <= 1


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert decode(tmp_path / "opaque.png", 8, 3)[:, 0, 0].tolist() == [10, 200, 30]
    assert (decode(tmp_path / "clear.png", 8, 3) == 255).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red = decode(tmp_path / "x.jpg", 8, 3)[:, 4, 4].astype(int)
    assert red[0] > 240
    assert max(red[1:]) < 15


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), (0x80FF, 0x80), (0xFFFF, 255)])
def test_16_bit_grey_keeps_its_high_byte(tmp_path: Path, value: int, wanted: int) -> None:
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "x.png")
    for channels in (1, 3):
        assert (decode(tmp_path / "x.png", 8, channels) == wanted).all()


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.new("1", (8, 8), 1).save(tmp_path / "x.png")
    assert (decode(tmp_path / "x.png", 8, 3) == 255).all()


def test_colour_becomes_grey_by_luma(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", 8, 1)[0, 0, 0] == 76  # 0.299 * 255


def test_crop_halves_by_box_means() -> None:
    small = np.array(noise(8, 8))
    large = Image.fromarray(small.repeat(4, 0).repeat(4, 1))
    assert np.array_equal(np.array(centre_crop(large, 8)), small)


def test_crop_takes_the_middle() -> None:
    pixels = np.array(noise(8, 21))
    assert np.array_equal(np.array(centre_crop(Image.fromarray(pixels), 8)), pixels[:, 6:14])
    tall = pixels.transpose(1, 0, 2).copy()
    assert np.array_equal(np.array(centre_crop(Image.fromarray(tall), 8)), tall[6:14])


def test_crop_enlarges_small_pictures() -> None:
    assert centre_crop(noise(3, 5), 8).size == (8, 8)


def test_file_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (8_001, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(UserError, match=r"bomb.png' is larger than 64 million pixels"):
            decode(tmp_path / "bomb.png", 64, 3)


def test_picture_too_narrow_for_a_square_is_refused(tmp_path: Path) -> None:
    Image.new("L", (30_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(UserError, match=r"line.png' is 30000x1, too narrow"):
        decode(tmp_path / "line.png", 256, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_picture_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "half.png").write_bytes(ENCODED[kind][: len(ENCODED[kind]) // 2])
    with pytest.raises(UserError, match=r"half.png' cannot be read .*; replace or remove it") as caught:
        decode(tmp_path / "half.png", 8, 3)
    assert "\n" not in str(caught.value)


def test_other_formats_behind_a_good_suffix_are_refused(tmp_path: Path) -> None:
    noise(9, 9).save(tmp_path / "gif.png", "GIF")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("gif.png", "empty.png", "absent.png"):
        with pytest.raises(UserError, match=f"{name}.*cannot be read"):
            decode(tmp_path / name, 8, 3)


@given(
    kind=st.sampled_from(FORMATS),
    cut=st.floats(0.1, 1),
    damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=20),
)
def test_damaged_bytes_raise_nothing_but_user_errors(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: float, damage: list[tuple[float, int]]
) -> None:
    data = bytearray(ENCODED[kind])
    for place, value in damage:
        data[int(place * len(data))] = value
    path = tmp_path_factory.mktemp("damaged") / "x.png"
    path.write_bytes(data[: max(1, int(cut * len(data)))])
    try:
        pixels = decode(path, 8, 3)
    except UserError:
        return
    assert pixels.shape == (3, 8, 8)
