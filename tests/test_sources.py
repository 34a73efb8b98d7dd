"""Pictures are read the same way every time, and broken ones are named before anything is trained."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from udit.data import sources
from udit.data.sources import ImageFolder, centre_crop, class_names, decode, digits, split
from udit.errors import UserError


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise(10, 12, seed=i).save(root / name / f"{i}.png")
    return root


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    noise(24, 20).save(stream, kind)
    return stream.getvalue()


ENCODED = {kind: encoded(kind) for kind in sources.FORMATS}


def test_import_is_free_of_torch() -> None:
    code = "import sys, udit.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digits_are_the_whole_set_over_the_whole_range() -> None:
    source = digits()
    assert source.pixels.shape == (1797, 1, 8, 8)
    assert (source.pixels.min(), source.pixels.max()) == (0, 255)
    assert len(np.unique(source.pixels)) == 17
    assert source.labels.dtype == np.int64
    assert list(source.labels[:4]) == [0, 1, 2, 3]
    assert source.names[17] == "digit 17"
    assert source.fingerprint == digits().fingerprint


def test_class_names_are_sorted_and_skip_the_hidden(tmp_path: Path) -> None:
    folder(tmp_path, dog=1, cat=1)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.txt").write_text("no class")
    assert class_names(tmp_path) == ["cat", "dog"]


def test_class_names_refuse_what_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.*no folder"):
        class_names(tmp_path / "absent")
    with pytest.raises(UserError, match="no class folders"):
        class_names(tmp_path)
    folder(tmp_path, cat=1, dog=0)
    (tmp_path / "dog" / "notes.txt").write_text("")
    (tmp_path / "dog" / ".hidden.png").write_bytes(ENCODED["PNG"])
    with pytest.raises(UserError, match=r"dog' holds no PNG.*remove it"):
        class_names(tmp_path)


def test_folder_lists_pictures_of_any_depth_with_labels(tmp_path: Path) -> None:
    folder(tmp_path, b=2, a=1)
    (tmp_path / "a" / "more").mkdir()
    noise(9, 9).save(tmp_path / "a" / "more" / "x.JPEG")
    source = ImageFolder(tmp_path, 8, 3)
    assert list(source.names) == ["a/0.png", "a/more/x.JPEG", "b/0.png", "b/1.png"]
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.image(1).shape == (3, 8, 8)


def test_files_of_other_kinds_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, a=1)
    noise(9, 9).save(tmp_path / "a" / "x.gif")
    ImageFolder(tmp_path, 8, 3)
    assert "1 files" in caplog.text
    assert "x.gif" in caplog.text


def test_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    first = ImageFolder(folder(tmp_path, a=2), 8, 3).fingerprint
    assert ImageFolder(tmp_path, 8, 3).fingerprint == first
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    second = ImageFolder(tmp_path, 8, 3).fingerprint
    noise(30, 30).save(tmp_path / "a" / "2.png")
    assert len({first, second, ImageFolder(tmp_path, 8, 3).fingerprint}) == 3


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


@pytest.mark.parametrize("kind", sources.FORMATS)
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
    kind=st.sampled_from(sources.FORMATS),
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


def test_verify_finds_every_bad_picture_and_names_the_first(tmp_path: Path) -> None:
    folder(tmp_path, a=3, b=3)
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"a/2.png' cannot be read .*2 of 6 pictures are unusable"):
        ImageFolder(tmp_path, 8, 3).verify()


def test_verified_pictures_stay_in_memory_as_they_were(tmp_path: Path) -> None:
    source = ImageFolder(folder(tmp_path, a=3), 8, 3)
    before = [source.image(i).copy() for i in range(3)]
    source.verify()
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    assert all(np.array_equal(source.image(i), before[i]) for i in range(3))


def test_verify_keeps_nothing_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_MEMORY", 3 * 3 * 8 * 8 - 1)
    source = ImageFolder(folder(tmp_path, a=3), 8, 3)
    source.verify()
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1.png"):
        source.image(1)


def items(*counts: int) -> tuple[np.ndarray, list[str]]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels, [f"{label}/{i}" for label, n in enumerate(counts) for i in range(n)]


def test_split_divides_every_class_by_the_shares() -> None:
    labels, names = items(100, 50, 7)
    parts = split(labels, names, 0.29, 0.1)
    assert np.bincount(labels[parts.judge]).tolist() == [29, 14, 2]
    assert np.bincount(labels[parts.test]).tolist() == [10, 5]
    everything = np.concatenate([parts.train, parts.judge, parts.test])
    assert np.array_equal(np.sort(everything), np.arange(157))
    assert parts.train.dtype == np.int64


@given(st.integers(1, 40), st.floats(0, 0.99), st.floats(0, 0.99))
def test_split_leaves_every_class_something_to_train_on(count: int, judge: float, test: float) -> None:
    if judge + test < 1:
        assert len(split(*items(count), judge, test).train) >= 1


def test_new_pictures_do_not_shuffle_the_old() -> None:
    labels, names = items(200)
    more_labels, more_names = items(210)
    old, new = split(labels, names, 0.3, 0.1), split(more_labels, more_names, 0.3, 0.1)
    kept = (
        len(set(old.train) & set(new.train)) + len(set(old.judge) & set(new.judge)) + len(set(old.test) & set(new.test))
    )
    assert kept >= 185  # only the borders between parts move


def test_split_does_not_depend_on_the_order_of_listing() -> None:
    labels, names = items(60)
    backwards = split(labels, names[::-1], 0.3, 0.1)
    assert {names[::-1][i] for i in backwards.judge} == {names[i] for i in split(labels, names, 0.3, 0.1).judge}
