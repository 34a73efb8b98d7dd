"""Images of any kind are converted by fixed rules, and what cannot be read is refused in one line."""

from __future__ import annotations

import io
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import DATA
from image_files import mutated, noise, peak_megabytes
from udit.data.decode import FORMATS, MAX_BYTES, MAX_PIXELS, Budget, Header, centre_crop, decode, peek
from udit.errors import UserError


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    noise(24, 20).save(stream, kind)
    return stream.getvalue()


ENCODED = {kind: encoded(kind) for kind in FORMATS}


RED, GREEN, BLUE, GREY, WHITE = (200, 0, 0), (0, 200, 0), (0, 0, 200), (90,) * 3, (255,) * 3
SCENE = (RED, GREEN, BLUE, GREY)
GREYS = ((0,) * 3, (80,) * 3, (160,) * 3, WHITE)
GOLDEN = {
    "scene.jpg": SCENE,
    "progressive.jpg": SCENE,
    "two-pictures.jpg": SCENE,
    "cmyk.jpg": SCENE,
    "turned.jpg": SCENE,
    "turned.png": SCENE,
    "turned.webp": SCENE,
    "animated.gif": SCENE,
    "animated.png": SCENE,
    "animated.webp": SCENE,
    "still-of-animation.png": SCENE,
    "palette.png": SCENE,
    "rgb16.png": SCENE,
    "rgba16.png": (RED, GREEN, BLUE, WHITE),
    "clear.gif": (RED, GREEN, BLUE, WHITE),
    "palette-clear.png": (RED, GREEN, BLUE, WHITE),
    "rgba.png": (RED, GREEN, (127, 127, 227), WHITE),
    "rgba.webp": (RED, GREEN, (127, 127, 227), WHITE),
    "grey.jpg": GREYS,
    "grey.png": GREYS,
    "grey16.png": GREYS,
    "grey16-clear.png": (GREYS[0], WHITE, GREYS[2], WHITE),
    "la.png": (GREYS[0], GREYS[1], (127,) * 3, WHITE),
    "bit.png": (GREYS[0], WHITE, WHITE, GREYS[0]),
}
"""Colours of the quarters of every file in ``data/pictures``: top left, top right, bottom left, bottom right."""


@pytest.mark.parametrize("name", GOLDEN)
def test_every_kind_of_image_becomes_what_the_table_says(name: str) -> None:
    pixels = decode(DATA / "pictures" / name, 16, 3).astype(int)
    wanted = np.array(GOLDEN[name]).reshape(2, 2, 3).repeat(8, 0).repeat(8, 1).transpose(2, 0, 1)
    assert np.abs(pixels - wanted).max() <= (1 if name.endswith("jpg") else 0)


def test_every_file_of_the_table_is_there() -> None:
    assert {path.name for path in (DATA / "pictures").iterdir()} == set(GOLDEN)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scene.jpg", Header("JPEG", 16, 16, "RGB", animated=False, turned=False, transparent=False)),
        ("cmyk.jpg", Header("JPEG", 16, 16, "CMYK", animated=False, turned=False, transparent=False)),
        (
            "turned.webp",
            Header("WEBP", 16, 16, "RGB", animated=False, turned=True, transparent=False, sideways=True),
        ),
        ("animated.gif", Header("GIF", 16, 16, "P", animated=True, turned=False, transparent=False)),
        ("grey16-clear.png", Header("PNG", 16, 16, "I;16", animated=False, turned=False, transparent=True)),
    ],
)
def test_header_gives_what_is_converted_in_an_image(name: str, said: Header) -> None:
    assert peek(DATA / "pictures" / name) == said


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.array(noise(16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # how a camera stores what is upright: the turns of the EXIF standard, undone
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "x.png", 16, 3).transpose(1, 2, 0), upright)


def test_open_file_is_read_as_its_path_is_and_named_as_asked() -> None:
    path = DATA / "pictures" / "rgba.png"
    with path.open("rb") as stream:
        assert np.array_equal(decode(stream, 16, 3), decode(path, 16, 3))
    with pytest.raises(
        UserError, match=r"^image 'row 7' cannot be read \(not a PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC\)"
    ):
        decode(io.BytesIO(b"nothing"), 16, 3, name="row 7")


def test_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.webp").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"x.webp' is a file of more than 256 MB"):
        decode(tmp_path / "x.webp", 16, 3)


def test_budget_lets_no_two_large_images_be_decoded_at_once() -> None:
    budget, inside, most = Budget(), 0, 0

    def take(pixels: int) -> None:
        nonlocal inside, most
        with budget.take(pixels):
            inside += pixels
            most = max(most, inside)
            time.sleep(0.002)
            inside -= pixels

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, [MAX_PIXELS, 30_000_000, 25_000_000, 1, MAX_PIXELS, 20_000_000] * 3))
    assert 30_000_000 < most <= MAX_PIXELS


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparency_lies_on_white(tmp_path: Path, suffix: str) -> None:
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / f"x.{suffix}", lossless=True)
    assert (decode(tmp_path / f"x.{suffix}", 8, 3) == 255).all()


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert decode(tmp_path / "opaque.png", 8, 3)[:, 0, 0].tolist() == [10, 200, 30]
    assert (decode(tmp_path / "clear.png", 8, 3) == 255).all()


@pytest.mark.parametrize(("value", "wanted"), [(0, 0), (0x80FF, 0x80), (0xFFFF, 255)])
def test_16_bit_grey_keeps_its_high_byte(tmp_path: Path, value: int, wanted: int) -> None:
    Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "x.png")
    for channels in (1, 3):
        assert (decode(tmp_path / "x.png", 8, channels) == wanted).all()


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


def test_crop_enlarges_small_images() -> None:
    assert centre_crop(noise(3, 5), 8).size == (8, 8)


def test_file_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (7_072, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(UserError, match=r"bomb.png' is larger than 50 million pixels"):
            decode(tmp_path / "bomb.png", 64, 3)


def test_image_too_narrow_for_a_square_is_refused(tmp_path: Path) -> None:
    Image.new("L", (30_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(UserError, match=r"line.png' is 30000x1, too narrow"):
        decode(tmp_path / "line.png", 256, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_image_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "half.png").write_bytes(ENCODED[kind][: len(ENCODED[kind]) // 2])
    with pytest.raises(UserError, match=r"half.png' cannot be read .*; replace or remove it") as caught:
        decode(tmp_path / "half.png", 8, 3)
    assert "\n" not in str(caught.value)


def test_tiff_that_pillow_does_not_read_is_called_one(tmp_path: Path) -> None:
    values = np.ones((8, 8), "<f2").tobytes()
    fields = {256: 8, 257: 8, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(values), 339: 3}  # float16
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(values))
    data = head + values + struct.pack("<H", len(fields)) + directory + bytes(4)
    (tmp_path / "x.tiff").write_bytes(data)
    for file in (tmp_path / "x.tiff", io.BytesIO(data)):
        with pytest.raises(UserError, match=r"\(a TIFF, damaged or of a kind that Pillow does not read\)"):
            decode(file, 8, 3, name="x.tiff")


def test_other_formats_behind_a_good_suffix_are_refused(tmp_path: Path) -> None:
    noise(9, 9).save(tmp_path / "bitmap.png", "BMP")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("bitmap.png", "empty.png"):
        with pytest.raises(UserError, match=f"{name}.*cannot be read"):
            decode(tmp_path / name, 8, 3)


def test_absent_image_is_said_to_be_absent(tmp_path: Path) -> None:
    for reads in (lambda path: decode(path, 8, 3), peek):
        with pytest.raises(UserError, match=r"absent.png' is not there; check the path$"):
            reads(tmp_path / "absent.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_programs_with_an_image_suffix_are_not_run(tmp_path: Path, suffix: str) -> None:
    """Pillow passes PostScript to Ghostscript and reads FITS through a codec; neither is called here."""
    starts = [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", b"SIMPLE  =                    T", b"%PDF-1.4\n"]
    for start in starts:
        (tmp_path / f"x.{suffix}").write_bytes(start + bytes(3000))
        with pytest.raises(UserError, match="not a PNG, JPEG, WebP, GIF"):
            decode(tmp_path / f"x.{suffix}", 8, 3)


def test_two_thousand_mutated_files_are_an_image_or_one_line_each_within_five_seconds() -> None:
    random = np.random.default_rng(0)
    told, slowest = 0, 0.0
    for i in range(2_000):
        file = io.BytesIO(mutated(ENCODED[FORMATS[i % 3]], random))
        began = time.process_time()
        try:
            assert decode(file, 8, 3, name="it").shape == (3, 8, 8)
        except UserError as error:
            assert "\n" not in str(error)
            told += 1
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 5
    assert 500 < told < 1_900


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


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "I;16", "LA", "1"])
def test_largest_image_of_any_kind_is_decoded_in_less_than_500_megabytes(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (7_071, 7_071), 1 if mode in ("P", "1") else None)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path, exif=exif, **({"transparency": 1} if mode == "P" else {}))
    del image
    statement = "from udit.data.decode import decode; decode(sys.argv[1], 64, 3)"
    code, _, errors, megabytes = peak_megabytes(statement, path)
    assert code == 0, errors
    assert 90 < megabytes < 500
