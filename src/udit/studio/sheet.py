"""Images as the page shows and saves them: figures with captions in HTML, a grid as PNG, all of them in a zip."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from udit.images import png_info, to_image

SMALL = 96
"""Side up to which an image is sent as it is, in PNG, and the browser enlarges it without interpolation."""
SHOWN = 384
"""Longest side of an image that is shown; larger ones are saved at their own size alone."""
WIDE = 1400
"""Width of a sample grid that is shown; wider ones are reduced."""


def figures(images: Sequence[Tensor], captions: Sequence[str], columns: int = 0) -> str:
    """A grid of figures, each an image with its caption, which is also its text for those who do not see it.

    Args:
        images: uint8 [C, H, W] each.
        captions: one for each, and for those that are still to come, which are empty frames.
        columns: of the grid; 0 is as many as fit. On a narrow screen the grid is scrolled sideways.
    """
    cells = [figure(image, caption) for image, caption in zip(images, captions, strict=False)]
    cells += [f"<figure><div class='hollow'></div>{_caption(text)}</figure>" for text in captions[len(images) :]]
    large = bool(images) and max(images[-1].shape[1:]) > SMALL
    return sheet(cells, columns, large=large)


def sheet(cells: Sequence[str], columns: int, *, large: bool = False, kind: str = "") -> str:
    """Figures in rows.

    Args:
        cells: HTML of each.
        columns: as of ``figures``.
        large: not to be enlarged pixel by pixel.
        kind: a further class of the style sheet.
    """
    classes = " ".join(name for name in ("sheet", "fixed" if columns else "", "large" if large else "", kind) if name)
    style = f" style='--columns:{columns}'" if columns else ""
    return f"<div class='{classes}'{style}>{''.join(cells)}</div>"


def figure(image: Tensor, caption: str) -> str:
    """One image with its caption."""
    alt, source = escape(caption, quote=True), data_uri(to_image(image))
    return f"<figure><img alt='{alt}' src='{source}'>{_caption(caption)}</figure>"


def _caption(text: str) -> str:
    return f"<figcaption title='{escape(text, quote=True)}'>{escape(text)}</figcaption>"


def data_uri(image: Image.Image) -> str:
    """An image within the page: PNG where it is small, else WebP."""
    if max(image.size) <= SMALL:
        return _encoded(image, "png", compress_level=1)
    image.thumbnail((SHOWN, SHOWN))
    return _encoded(image, "webp", quality=85, method=0)


def _encoded(image: Image.Image, kind: str, **options: int) -> str:
    stream = io.BytesIO()
    image.save(stream, format=kind.upper(), **options)
    return _uri(kind, stream.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def sample_grid(path: Path, step: int) -> str:
    """A run's sample grid, as it is or, if it is wide, reduced and as WebP."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            wide = image.width > WIDE
            if not wide:
                uri = _uri("png", path.read_bytes())
            else:
                image.thumbnail((WIDE, WIDE * 2))
                uri = _encoded(image, "webp", quality=85, method=0)
            text = f"Samples of step {step:,}"
            return f"<figure class='samples'><img alt='{text}' src='{uri}' width='{image.width}'></figure>"
    except OSError:  # it is being replaced, or was removed
        return hint("The sample grid cannot be read.")


def status(text: str, share: float | None = None) -> str:
    """A line on what is going on, with a bar for the share that is done."""
    bar = f"<progress value='{share:.4f}' max='1' aria-label='done'></progress>" if share is not None else ""
    return f"<div class='status'><p role='status'>{escape(text)}</p>{bar}</div>"


def problem(text: str) -> str:
    """A line on what went wrong."""
    return f"<div class='status'><p class='problem' role='alert'>{escape(text)}</p></div>"


def hint(text: str) -> str:
    """What an empty area says."""
    return f"<div class='hint'><p>{escape(text)}</p></div>"


def command_text(command: str) -> str:
    """A command that can be opened and copied; nothing for none."""
    if not command:
        return ""
    return f"<details class='command'><summary>The same as a command</summary><pre>{escape(command)}</pre></details>"


def write_zip(
    path: Path, images: Sequence[Tensor], settings: Sequence[Mapping[str, Any]], sheet: Image.Image, common: Any
) -> None:
    """All images as PNGs that carry their settings, and the grid, in one file.

    Args:
        path: of the zip.
        images: uint8 [C, H, W] each.
        settings: of each image.
        sheet: the grid.
        common: its settings.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for i, (image, own) in enumerate(zip(images, settings, strict=True)):
            file.writestr(f"{i:06d}.png", _png(to_image(image), own))
        file.writestr("grid.png", _png(sheet, common))


def _png(image: Image.Image, settings: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", pnginfo=png_info(settings))
    return stream.getvalue()
