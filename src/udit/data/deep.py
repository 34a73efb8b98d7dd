"""Image files of 16 bits without a detour through 8: cropped in floating point, as ``decode`` crops those of 8 bits.

Pillow keeps the high byte of 16-bit colour and has no mode for all of it. It is decoded a second time with the bytes of
each number exchanged, and then keeps the low one.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from udit.data.decode import Budget, Size, centre_crop, check_width, flat, opened, raw_mode
from udit.errors import UserError

Floats = NDArray[np.float32]
WHITE = 255.0
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R 601."""


def decode_deep(
    file: Path | str | BinaryIO,
    size: Size,
    channels: Literal[1, 3],
    name: str | None = None,
    budget: Budget | None = None,
    bits: int = 16,
    at: float = 0.5,
) -> Floats:
    """One image file as ``decode`` crops it, with all bits that it has.

    Args:
        file: see there, as are the next ones.
        size: see there.
        channels: see there.
        name: see there.
        budget: see there.
        bits: depth of grey in files of 16 bits; 2**bits - 1 is white, and what is brighter is white.
        at: see ``centre_crop``.

    Returns:
        float32 [C, H, W] in 0..255, where 255 is white at any depth.

    Raises:
        UserError: see there.
    """
    name = name or str(file)
    with opened(file, name) as image:
        check_width(image, size, name)
        # of float32 bands of the whole image there is no room for as many pixels as of bytes
        with budget.take(image.width * image.height) if budget else nullcontext():
            bands = _bands(image, file, channels, name, bits)
            cropped = [np.asarray(centre_crop(Image.fromarray(band), size, at)) for band in bands]
    grey_as_colour = channels == 3 and len(cropped) == 1
    x = np.stack(cropped * 3 if grey_as_colour else cropped)
    if channels == 1 and len(x) == 3:
        x = np.tensordot(LUMA, x, 1)[None]
    return np.ascontiguousarray(x.clip(0, WHITE), dtype=np.float32)


def _bands(
    image: Image.Image, file: Path | str | BinaryIO, channels: Literal[1, 3], name: str, bits: int
) -> list[Floats]:
    """Grey, or red, green and blue, upright, without transparency, 0..255."""
    layout = raw_mode(image)
    if layout is not None:
        return _colour(image, file, layout, name)
    if image.mode.startswith("I"):
        ImageOps.exif_transpose(image, in_place=True)
        grey = np.asarray(image)
        clear = image.info.get("transparency")
        values = grey.clip(0, 2**bits - 1).astype(np.float32) * np.float32(WHITE / (2**bits - 1))
        if isinstance(clear, int):
            values[grey == clear] = WHITE
        return [values]
    small = np.asarray(flat(image, channels, bits), np.float32)
    return [small] if small.ndim == 2 else list(np.ascontiguousarray(small.transpose(2, 0, 1)))


def _colour(image: Image.Image, file: Path | str | BinaryIO, layout: str, name: str) -> list[Floats]:
    kind, _, order = layout.partition(";16")
    if kind == "LA":
        raise UserError(
            f"image {name!r} is 16-bit grey with transparency, which is read with 8 bits; set data.deep=false"
        )
    if not isinstance(file, str | Path):
        file.seek(0)
    with opened(file, name) as again:
        _exchange(again, f"{kind};16{'B' if order == 'L' or (order == 'N' and sys.byteorder == 'little') else 'L'}")
        low = _upright(again)
    values = _upright(image) * 256.0 + low
    values *= np.float32(WHITE / 65535)
    if image.mode in ("RGBA", "RGBa"):
        alpha = values[..., 3:] / np.float32(WHITE)
        values = values[..., :3] * (alpha if image.mode == "RGBA" else 1) + WHITE * (1 - alpha)
    return list(np.ascontiguousarray(values[..., :3].transpose(2, 0, 1)))


def _exchange(image: Image.Image, layout: str) -> None:
    """Makes an image that is not decoded yet read its numbers in another order of bytes."""
    tiles: list[Any] = image.tile  # type: ignore[attr-defined]
    for i, tile in enumerate(tiles):
        args = (layout, *tile.args[1:]) if isinstance(tile.args, tuple) else layout
        tiles[i] = type(tile)(*tile[:3], args)


def _upright(image: Image.Image) -> Floats:
    """[H, W, C]."""
    ImageOps.exif_transpose(image, in_place=True)
    return np.asarray(image, np.float32)
