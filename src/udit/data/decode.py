"""From a picture file of any kind to a square of pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from udit.data.sources import Pixels
from udit.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a small file can claim to be a huge picture."""
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
"""What Pillow's decoders raise on broken files; there is no common base but Exception."""


def decode(path: Path | str, size: int, channels: Literal[1, 3]) -> Pixels:
    """One picture file as a square.

    Turned upright by its EXIF orientation; transparency lies on white; 16-bit samples keep their high byte; palette,
    CMYK and the like become RGB; colour becomes grey by ITU-R 601 luma; of an animation, the first frame. Then
    ``centre_crop``.

    Args:
        path: a PNG, JPEG or WebP file, whatever its suffix says.
        size: side in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        [C, size, size] in 0..255.

    Raises:
        UserError: not such a file, broken, or larger than ``MAX_PIXELS``.
    """
    too_large = f"picture {str(path)!r} is larger than {MAX_PIXELS // 10**6} million pixels; shrink or remove it"
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            flat = _flat(image, channels)
            enlarged = size * size * max(flat.size) / min(flat.size)
            square = centre_crop(flat, size) if enlarged <= MAX_PIXELS else None
    except Image.DecompressionBombError:
        raise UserError(too_large) from None
    except DECODE_ERRORS as error:
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"picture {str(path)!r} cannot be read ({detail}); replace or remove it") from None
    if square is None:
        raise UserError(
            f"picture {str(path)!r} is {flat.width}x{flat.height}, too narrow to cut a square; crop or remove it"
        )
    pixels = np.asarray(square)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _flat(image: Image.Image, channels: Literal[1, 3]) -> Image.Image:
    """Upright 8-bit RGB or grey without transparency."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 where it should scale; colour it has already cut to the high byte
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert("RGB").convert(mode)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture at ``size`` pixels a side: ADM's preprocessing (Dhariwal & Nichol 2021).

    Halves by box averages while both sides stay at least ``size``, then takes the shorter side to ``size`` bicubically.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
