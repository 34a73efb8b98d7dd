"""Decodes an image file and crops it to a square.

What the conversion does (``tests/test_decode.py`` checks a file of each kind):

| in the file | in the square |
|---|---|
| EXIF orientation | rotated upright |
| grey, one bit, palette | the same colours in RGB |
| transparency, full or partial, or a transparent colour | composited on white |
| 16 bits of grey | the highest 8 of ``bits`` |
| 16 bits of colour | the high byte |
| CMYK, YCCK | Pillow's formula, (255 - C) (255 - K) / 255 and so on; colour profiles are not applied |
| colour, where ``channels`` is 1 | ITU-R 601 luma |
| animation (GIF, WebP, APNG) and several images (MPO) | the first frame; of an APNG, its still image |
"""

from __future__ import annotations

import functools
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from udit.data.sources import Pixels
from udit.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
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
    with _opened(file, name or str(file)) as image:
        exif = Image.Image.getexif(image)  # PngImageFile.getexif would decode the image
        return Header(
            format=str(image.format),
            width=image.width,
            height=image.height,
            mode=image.mode,
            animated=getattr(image, "is_animated", False),
            turned=exif.get(ExifTags.Base.Orientation, 1) in range(2, 9),
            transparent=image.has_transparency_data,
        )


def decode(
    file: Path | str | BinaryIO,
    size: int,
    channels: Literal[1, 3],
    name: str | None = None,
    budget: Budget | None = None,
    bits: int = 16,
) -> Pixels:
    """One image file as a square: converted as the table says, then ``centre_crop``.

    Args:
        file: a PNG, JPEG, WebP or GIF file of any extension; a path or an open file.
        size: side in pixels.
        channels: 3 for RGB, 1 for grey.
        name: of the image in errors; the path if not given.
        budget: shared by all threads that decode.
        bits: depth of grey in files of 16 bits, 8 to 16; what is brighter is white.

    Returns:
        [C, size, size] in 0..255.

    Raises:
        UserError: not such a file, damaged, larger than ``MAX_PIXELS``, or too narrow.
    """
    name = name or str(file)
    with _opened(file, name) as image:
        width, height = image.size
        if size * size * max(image.size) / min(image.size) > MAX_PIXELS:
            raise UserError(f"image {name!r} is {width}x{height}, too narrow to crop to a square; crop or remove it")
        with budget.take(width * height) if budget else nullcontext():
            flat = _flat(image, channels, bits)
            if flat is not image:
                image.close()  # frees its pixels
            return _pixels(centre_crop(flat, size))


def cropped(image: Image.Image, size: int, channels: Literal[1, 3]) -> Pixels:
    """An opened image of 8 bits, e.g. a frame of a clip, as ``decode`` returns it."""
    return _pixels(centre_crop(_flat(image, channels, 8), size))


def _pixels(image: Image.Image) -> Pixels:
    """RGB or grey -> [C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextmanager
def _opened(file: Path | str | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An open image within the limits whose header has been read; errors while it is used become a ``UserError``."""
    try:
        if isinstance(file, str | Path) and Path(file).stat().st_size > MAX_BYTES:
            raise UserError(f"image {name!r} is a file of more than {MAX_BYTES // 2**20} MB; shrink or remove it")
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"image {name!r} is larger than {MAX_PIXELS // 10**6} million pixels; shrink or remove it"
        ) from None
    except DECODE_ERRORS as error:
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            detail = "not a PNG, JPEG, WebP or GIF"
        raise UserError(f"image {name!r} cannot be read ({detail}); replace or remove it") from None


def brightest(file: Path) -> int:
    """The largest value of any channel but alpha in an image file: of 65535 in 16-bit grey, else of 255.

    Raises:
        UserError: see ``decode``.
    """
    with _opened(file, str(file)) as image:
        extrema = image.convert("RGB").getextrema() if image.mode == "P" else image.getextrema()
        bands = [extrema] if isinstance(extrema[0], int | float) else extrema
        values = bands[:-1] if image.mode in ("LA", "RGBA", "La", "RGBa") else bands
        return int(max(high for _, high in values))


def _flat(image: Image.Image, channels: Literal[1, 3], bits: int) -> Image.Image:
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


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, ``size`` pixels per side: ADM's preprocessing (Dhariwal & Nichol 2021).

    Halves by box averages while both sides stay at least ``size``, then resizes the shorter side bicubically.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
