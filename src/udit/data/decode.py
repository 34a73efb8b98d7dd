"""Decodes an image file and crops it to a square or another shape; ``deep.py`` keeps 16 bits where that is asked for.

What the conversion does (``tests/test_decode.py`` checks a file of each kind):

| in the file | in the crop |
|---|---|
| EXIF orientation | rotated upright |
| grey, one bit, palette | the same colours in RGB |
| transparency, full or partial, or a transparent colour | composited on white |
| 16 bits of grey | the highest 8 of ``bits`` |
| 16 bits of colour | the high byte |
| CMYK, YCCK | Pillow's formula, (255 - C) (255 - K) / 255 and so on; colour profiles are not applied |
| colour, where ``channels`` is 1 | ITU-R 601 luma |
| animation (GIF, WebP, APNG) and several images (MPO, TIFF, AVIF, HEIC) | the first; of an APNG, its still image |
| 32-bit integers and floats (TIFF) | refused: nothing says what is white |
"""

from __future__ import annotations

import functools
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from udit.data.sources import Pixels
from udit.errors import UserError, missing_extra

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF")
"""Pillow's names of what every build reads; JPEG is MPO too. AVIF and HEIC, which not every one reads, come on top."""
KNOWN = "PNG, JPEG, WebP, GIF, TIFF, AVIF or HEIC"
"""The formats in words."""
BEGINNINGS = {
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
}
"""How files begin, as regular expressions."""
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
"""At byte 8 of a HEIC file, after ``ftyp`` (ISO/IEC 23008-12, annex B); the last two stand in AVIF files too."""
DEEP_LAYOUT = re.compile(r"(RGB|RGBA|RGBX|RGBa|LA);16[BLN]")
"""Layouts of 16-bit colour or of grey with transparency, of which Pillow keeps the high byte."""
Size = int | tuple[int, int]
"""Side of a square, or (height, width), in pixels."""
MAX_PIXELS = 50_000_000
"""Largest image that is decoded; a small file can claim to be a huge image. Decoder and cropped square together take at
most 8 bytes per pixel."""
MAX_BYTES = 2**28
"""Largest image file; some decoders read a file whole."""
DECODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files; their only common base is Exception."""


@dataclass(frozen=True)
class Header:
    """What an image file's header says."""

    format: str
    width: int
    height: int
    mode: str
    """Pillow's, e.g. RGB, CMYK, I;16."""
    animated: bool
    turned: bool
    """Whether its EXIF orientation is other than upright."""
    transparent: bool
    deep_colour: bool = False
    """Whether it is colour of 16 bits."""
    sideways: bool = False
    """Whether its EXIF orientation exchanges height and width."""

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of the image as it is decoded."""
        return (self.width, self.height) if self.sideways else (self.height, self.width)

    @property
    def deep(self) -> bool:
        """Whether it is grey of 16 bits."""
        return self.mode.startswith("I")


class Budget:
    """Pixels that all threads together may decode at a time: ``MAX_PIXELS``."""

    def __init__(self) -> None:
        self._free = MAX_PIXELS
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Waits until that many are free, and holds them within the context."""
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


def peek(file: Path | BinaryIO, name: str | None = None) -> Header:
    """Reads an image's header, and no pixel.

    Args:
        file: a path, or an open file.
        name: of the image in errors; the path if not given.

    Raises:
        UserError: not an image of ``FORMATS``, or larger than ``MAX_PIXELS``.
    """
    with opened(file, name or str(file)) as image:
        # PngImageFile.getexif would decode the image
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return Header(
            format=str(image.format),
            width=image.width,
            height=image.height,
            mode=image.mode,
            animated=getattr(image, "is_animated", False),
            turned=orientation in range(2, 9),
            transparent=image.has_transparency_data,
            deep_colour=raw_mode(image) is not None,
            sideways=orientation in range(5, 9),
        )


def decode(
    file: Path | str | BinaryIO,
    size: Size,
    channels: Literal[1, 3],
    name: str | None = None,
    budget: Budget | None = None,
    bits: int = 16,
    at: float = 0.5,
) -> Pixels:
    """One image file as a square or another shape: converted as the table says, then ``centre_crop``.

    Args:
        file: of ``KNOWN`` formats, with any extension; a path or an open file.
        size: side, or (height, width), in pixels.
        channels: 3 for RGB, 1 for grey.
        name: of the image in errors; the path if not given.
        budget: shared by all threads that decode.
        bits: depth of grey in files of 16 bits, 8 to 16; what is brighter is white.
        at: where the crop lies along the longer side, see ``centre_crop``.

    Returns:
        [C, H, W] in 0..255.

    Raises:
        UserError: not such a file, damaged, larger than ``MAX_PIXELS``, or too narrow.
    """
    name = name or str(file)
    with opened(file, name) as image:
        check_width(image, size, name)
        with budget.take(image.width * image.height) if budget else nullcontext():
            plain = flat(image, channels, bits)
            if plain is not image:
                image.close()  # frees its pixels
            pixels = np.asarray(centre_crop(plain, size, at))
    return _pixels(pixels)


def cropped(image: Image.Image, size: int, channels: Literal[1, 3]) -> Pixels:
    """An opened image of 8 bits, e.g. a frame of a clip, as ``decode`` returns it."""
    return _pixels(np.asarray(centre_crop(flat(image, channels, 8), size)))


def _pixels(pixels: Pixels) -> Pixels:
    """[H, W], or [H, W, 3] -> [C, H, W]."""
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_width(image: Image.Image, size: Size, name: str) -> None:
    """Refuses an image that would become too large on its way to a crop.

    Raises:
        UserError: names it.
    """
    width, height = scaled(image, size)
    if width * height > MAX_PIXELS:
        shape = "a square" if isinstance(size, int) or size[0] == size[1] else f"{size[0]}x{size[1]}"
        raise UserError(
            f"image {name!r} is {image.width}x{image.height}, too narrow to crop to {shape}; crop or remove it"
        )


@contextmanager
def opened(file: Path | str | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An open image within the limits whose header has been read; errors while it is used become a ``UserError``."""
    _without_warnings()
    try:
        if isinstance(file, str | Path) and Path(file).stat().st_size > MAX_BYTES:
            raise UserError(f"image {name!r} is a file of more than {MAX_BYTES // 2**20} MB; shrink or remove it")
        with Image.open(file, formats=_formats(file, name)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if image.mode in ("F", "I"):
                kind = "real numbers" if image.mode == "F" else "integers of 32 bits"
                raise UserError(
                    f"image {name!r} holds {kind}, of which none is white; write 8 or 16 bits, or remove it"
                )
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"image {name!r} is larger than {MAX_PIXELS // 10**6} million pixels; shrink or remove it"
        ) from None
    except FileNotFoundError:
        raise UserError(f"image {name!r} is not there; check the path") from None
    except DECODE_ERRORS as error:
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            begun = _begins_as(file)
            detail = f"a {begun}, damaged or of a kind that Pillow does not read" if begun else f"not a {KNOWN}"
        raise UserError(f"image {name!r} cannot be read ({detail}); replace or remove it") from None


def _begins_as(file: Path | str | BinaryIO) -> str | None:
    """The format that the first bytes of a file are of, where Pillow reads no more of it: a TIFF of float16, say."""
    if isinstance(file, str | Path):
        with Path(file).open("rb") as stream:
            head = stream.read(12)
    else:
        file.seek(0)
        head = file.read(12)
    return next((kind for kind, begin in BEGINNINGS.items() if re.match(begin, head, re.DOTALL)), None)


@functools.cache
def _without_warnings() -> None:
    """Silences Pillow's warnings of odd metadata: what makes an image unreadable is an error."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _formats(file: Path | str | BinaryIO, name: str) -> tuple[str, ...]:
    """Pillow's names of the formats that a file may have: ``FORMATS``, or AVIF or HEIC where it says so.

    Raises:
        UserError: HEIC without the plugin, or AVIF in a Pillow without it.
    """
    if isinstance(file, str | Path):
        with Path(file).open("rb") as stream:
            head = stream.read(64)
    else:
        head = file.read(64)
        file.seek(0)
    if head[4:8] != b"ftyp":
        return FORMATS
    if head[8:12] not in HEIC_BRANDS or b"avif" in head:
        if not features.check("avif"):
            raise UserError(f"image {name!r} is AVIF, which this Pillow does not read; pip install -U pillow")
        return ("AVIF",)
    try:
        import pillow_heif
    except ImportError:
        raise missing_extra(f"image {name!r} is HEIC, which", "pillow-heif", "formats") from None
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def raw_mode(image: Image.Image) -> str | None:
    """The layout of 16-bit colour as Pillow calls it, e.g. RGB;16B, of an open image; None where there are 8 bits."""
    tiles: list[Any] = getattr(image, "tile", [])
    args = tiles[0].args if tiles else None
    layout = args[0] if isinstance(args, tuple) and args else args
    return layout if isinstance(layout, str) and DEEP_LAYOUT.fullmatch(layout) else None


def brightest(file: Path | BinaryIO, name: str | None = None) -> int:
    """The largest value of any channel but alpha in an image file: of 65535 in 16-bit grey, else of 255.

    Raises:
        UserError: see ``decode``.
    """
    with opened(file, name or str(file)) as image:
        extrema = image.convert("RGB").getextrema() if image.mode == "P" else image.getextrema()
        bands = [extrema] if isinstance(extrema[0], int | float) else extrema
        values = bands[:-1] if image.mode in ("LA", "RGBA", "La", "RGBa") else bands
        return int(max(high for _, high in values))


def flat(image: Image.Image, channels: Literal[1, 3], bits: int) -> Image.Image:
    """Upright 8-bit RGB or grey without transparency."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        image = _in_bands(image, "L", functools.partial(_high_bits, bits=bits))
    elif image.has_transparency_data:
        image = _in_bands(image, "RGB", _on_white)
    if image.mode not in ("RGB", "L") or (channels == 3 and image.mode == "L"):
        image = image.convert("RGB")
    return image.convert("L") if channels == 1 and image.mode == "RGB" else image


def _high_bits(image: Image.Image, bits: int) -> Image.Image:
    """16-bit grey as 8 bits, where Pillow would clip at 255; of 16-bit colour Pillow keeps the high byte itself."""
    deep = np.asarray(image)
    grey = (deep >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if isinstance(image.info.get("transparency"), int):
        grey[deep == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _in_bands(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Converts a band of rows at a time: intermediate copies of the whole image would take several times its memory."""
    whole = Image.new(mode, image.size)
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(convert(image.crop(box)), box)
    return whole


def scaled(image: Image.Image, size: Size) -> tuple[int, int]:
    """(width, height) of an image whose shorter side, against that of the crop, fits it."""
    height, width = sides(size)
    scale = max(height / image.height, width / image.width)
    return round(image.width * scale), round(image.height * scale)


def sides(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def centre_crop(image: Image.Image, size: Size, at: float = 0.5) -> Image.Image:
    """The centre of an image in a square or another shape: ADM's preprocessing (Dhariwal & Nichol 2021).

    Halves by box averages while both sides stay at least those of the crop, then resizes bicubically until one fits.

    Args:
        image: of any shape.
        size: of the crop.
        at: where it lies along the side that is too long: 0 is the beginning, 0.5 the centre, 1 the end.
    """
    height, width = sides(size)
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    image = image.resize(scaled(image, size), Image.Resampling.BICUBIC)
    left, top = int((image.width - width) * at), int((image.height - height) * at)
    return image.crop((left, top, left + width, top + height))
