"""PNG files that carry their settings, and labelled grids of images."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from udit.errors import RunError
from udit.files import whole_file

PROMPT_SIDE = 128
"""Pixels of a side of images under prompts, which take more room than names."""
PNG_KEY = "udit"
"""The PNG text chunk that holds an image's settings as JSON."""
ELLIPSIS = "…"
MIN_PERIOD, MAX_PERIOD = 2, 20
"""Fewest and most classes that are shown as columns."""


def shown(images: Tensor) -> Tensor:
    """Images as they are; of float fields [N, C, H, W] the first channel, from black (least) to white (largest)."""
    if not images.is_floating_point():
        return images
    first = images[:, :1]
    low, high = first.min(), first.max()
    return ((first - low) / (high - low).clamp_min(1e-30) * 255).round().to(torch.uint8)


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
    info = png_info(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, durable=False) as temporary:
            image.save(temporary, format="PNG", pnginfo=info)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; give a writable place with enough room"
        ) from None


def png_bytes(image: Image.Image, settings: Mapping[str, Any] | None = None) -> bytes:
    """The contents of the file that ``save_png`` writes."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=png_info(settings))
    return stream.getvalue()


def png_info(settings: Mapping[str, Any] | None) -> PngInfo:
    """The text chunk ``udit`` of a PNG, or none."""
    info = PngInfo()
    if settings is not None:
        info.add_itxt(PNG_KEY, json.dumps(settings))
    return info


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings a PNG carries, or None."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        text = getattr(image, "text", {}).get(PNG_KEY)
    return None if text is None else json.loads(text)


def has_settings(path: Path) -> bool:
    """Whether a file is a PNG that carries settings; decodes nothing.

    Raises:
        OSError: it cannot be read as a PNG.
    """
    with Image.open(path, formats=["PNG"]) as image:
        return PNG_KEY in getattr(image, "text", {}) or PNG_KEY in image.info


def grid(
    images: Tensor,
    titles: Sequence[str] = (),
    columns: int | None = None,
    side: int = 64,
    *,
    numbers: Sequence[int] = (),
) -> Image.Image:
    """Images in rows, with titles.

    A title that is too long is cut and ends in an ellipsis, and begins with its number, so that two which begin alike
    can be told apart. Of a title with letters that the font lacks, only the number is shown.

    Args:
        images: uint8 [N, C, H, W].
        titles: one per image, or none.
        columns: images per row; about as many as rows if None, and so that a column is a class (``columns_of``).
        side: smaller images are enlarged by a whole factor without interpolation.
        numbers: of the titles, e.g. labels.
    """
    count = len(images)
    columns = min(count, columns or columns_of(numbers or titles, count))
    factor = max(1, side // max(images.shape[2:]))
    height, width = (length * factor for length in images.shape[2:])
    gap, bar = 4, 14 if titles else 0
    rows = math.ceil(count / columns)
    mode = "RGB" if images.shape[1] == 3 else "L"
    sheet = Image.new(
        mode, (columns * (width + gap) + gap, rows * (height + bar + gap) + gap), 255 if mode == "L" else "white"
    )
    pen, font = ImageDraw.Draw(sheet), title_font()
    for i, pixels in enumerate(images):
        left = gap + (i % columns) * (width + gap)
        top = gap + (i // columns) * (height + bar + gap)
        if titles:
            text = fitted(str(titles[i]), font, width - 1, numbers[i] if numbers else None)
            pen.text((left + 1, top + bar - 3), text, fill=0, font=font, anchor="ls")
        sheet.paste(to_image(pixels).resize((width, height), Image.Resampling.NEAREST), (left, top + bar))
    return sheet


def columns_of(labels: Sequence[Hashable], count: int) -> int:
    """Columns of a grid of ``count`` images: about as many as rows.

    Where labels repeat in turn, they are a multiple of the number of different ones, so that a column is a class.
    """
    square = math.ceil(math.sqrt(count))
    shown = labels[:count]
    period = len(set(shown))
    if not MIN_PERIOD <= period <= MAX_PERIOD or any(label != shown[i % period] for i, label in enumerate(shown)):
        return square
    return period * max(1, round(square / period)) if count > period else square


def title_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans where matplotlib is installed, which ships it; otherwise Pillow's own font, of Latin letters."""
    found = importlib.util.find_spec("matplotlib")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size=11, layout_engine=ImageFont.Layout.BASIC)
    return ImageFont.load_default(size=11)


def fitted(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, number: int | None) -> str:
    """A title as it is drawn in ``width`` pixels; see ``grid``."""
    title = " ".join(unicodedata.normalize("NFC", title).split())
    if number is not None and not _has_letters(font, title):
        return str(number)
    if font.getlength(title) <= width:
        return title
    title = title if number is None else f"{number} {title}"
    while title and font.getlength(f"{title}{ELLIPSIS}") > width:
        title = title[:-1]
    return f"{title.rstrip()}{ELLIPSIS}"


def _has_letters(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    """Whether a font has all letters of a text; those that it lacks are drawn as the one of an unassigned code."""
    lacking = bytes(font.getmask("\U0010fffe"))
    return all(letter == " " or bytes(font.getmask(letter)) != lacking for letter in set(text))
