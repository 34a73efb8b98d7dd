"""PNG files that carry their settings, and labelled grids of images."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from udit.errors import RunError
from udit.files import whole_file

PNG_KEY = "udit"
"""The PNG text chunk that holds an image's settings as JSON."""


def to_image(pixels: Tensor) -> Image.Image:
    """A uint8 tensor [C, H, W] with 1 or 3 channels as an image; of other numbers of channels, the first one."""
    array = pixels.numpy()
    if len(array) == 3:
        return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    return Image.fromarray(np.ascontiguousarray(array[0]))


def read_pixels(path: Path) -> Tensor:
    """The pixels of a PNG, uint8 [C, H, W]."""
    with Image.open(path, formats=["PNG"]) as image:
        array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def save_png(image: Image.Image, path: Path, settings: dict[str, Any] | None = None) -> None:
    """Writes a PNG whose text chunk ``udit`` holds ``settings``.

    Raises:
        RunError: the file cannot be written.
    """
    info = PngInfo()
    if settings is not None:
        info.add_itxt(PNG_KEY, json.dumps(settings))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, durable=False) as temporary:
            image.save(temporary, format="PNG", pnginfo=info)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; give a writable place with enough room"
        ) from None


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings a PNG carries, or None."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        text = getattr(image, "text", {}).get(PNG_KEY)
    return None if text is None else json.loads(text)


def grid(images: Tensor, titles: Sequence[str] = (), columns: int | None = None, side: int = 64) -> Image.Image:
    """Images in rows, with titles.

    Args:
        images: uint8 [N, C, H, W].
        titles: one per image, or none.
        columns: images per row; about as many as rows if None.
        side: smaller images are enlarged by a whole factor without interpolation.
    """
    count = len(images)
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    factor = max(1, side // max(images.shape[2:]))
    height, width = (length * factor for length in images.shape[2:])
    gap, bar = 4, 14 if titles else 0
    rows = math.ceil(count / columns)
    mode = "RGB" if images.shape[1] == 3 else "L"
    sheet = Image.new(
        mode, (columns * (width + gap) + gap, rows * (height + bar + gap) + gap), 255 if mode == "L" else "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, pixels in enumerate(images):
        left = gap + (i % columns) * (width + gap)
        top = gap + (i // columns) * (height + bar + gap)
        if titles:
            pen.text((left + 1, top), str(titles[i])[: width // 6], fill=0, font=font)
        sheet.paste(to_image(pixels).resize((width, height), Image.Resampling.NEAREST), (left, top + bar))
    return sheet
