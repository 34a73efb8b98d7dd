"""Files of clips: GIF and MP4, which carry their settings.

Axes: F frames, C channels, H and W side lengths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageSequence

from udit.errors import RunError, UserError, missing_extra
from udit.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor

FRAMES_PER_SECOND = 8
"""Of the clips that are written, where nothing else is said."""
OPENING = b'{"udit": {'
"""Where the settings of a file begin."""


def save_gif(
    clip: Tensor, path: Path, settings: Mapping[str, Any] | None = None, rate: int = FRAMES_PER_SECOND
) -> None:
    """Writes a clip as a GIF that repeats; its comment holds ``settings`` as JSON.

    A GIF counts time in 1/100 s, and Pillow writes equal frames in a row as one that lasts longer: ``read_gif`` gives
    the frames back.

    Args:
        clip: uint8 [C, F, H, W] of 1 or 3 channels; of other numbers of channels, the first one is written.
        path: of the file.
        settings: plain values.
        rate: frames a second.

    Raises:
        RunError: the file cannot be written.
    """
    colour = clip.shape[0] == 3
    frames = [Image.fromarray(frame if colour else frame[..., 0]) for frame in _frames(clip)]
    comment = {} if settings is None else {"comment": json.dumps({"udit": dict(settings)}).encode("ascii")}
    options: dict[str, Any] = {"append_images": frames[1:], "duration": 10 * round(100 / rate), "loop": 0, **comment}

    def write(temporary: Path) -> None:
        frames[0].save(temporary, format="GIF", save_all=True, optimize=False, **options)

    _write(path, write)


def save_mp4(
    clip: Tensor, path: Path, settings: Mapping[str, Any] | None = None, rate: int = FRAMES_PER_SECOND
) -> None:
    """Writes a clip as MP4 (H.264), which every browser plays; sides that are odd get one more row or column.

    Args:
        clip: as of ``save_gif``.
        path: of the file.
        settings: plain values; the file's comment holds them as JSON.
        rate: frames a second.

    Raises:
        UserError: PyAV is missing.
        RunError: the file cannot be written.
    """
    av = require_av()
    _, _, height, width = clip.shape
    frames = [np.pad(f, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") for f in _frames(clip)]

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as file:
            if settings is not None:
                file.metadata["comment"] = json.dumps({"udit": dict(settings)})
            stream = file.add_stream("libx264", rate=Fraction(rate))
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "16"}
            for frame in frames:
                colour = np.ascontiguousarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))
                file.mux(stream.encode(av.VideoFrame.from_ndarray(colour, format="rgb24")))
            file.mux(stream.encode())

    _write(path, write)


def read_gif(path: Path) -> Iterator[Image.Image]:
    """The frames of a GIF; one that lasts longer than the shortest comes as often as it lasts."""
    with Image.open(path, formats=["GIF"]) as file:
        lasts = [frame.info.get("duration", 0) or 0 for frame in ImageSequence.Iterator(file)]
        shortest = min((each for each in lasts if each), default=0)
        for frame, last in zip(ImageSequence.Iterator(file), lasts, strict=True):
            shown = frame.convert("RGB")
            for _ in range(max(1, round(last / shortest)) if shortest else 1):
                yield shown


def read_mp4(path: Path) -> Iterator[Image.Image]:
    """The frames of the first stream of images in an MP4 file.

    Raises:
        UserError: PyAV is missing, or there is no such stream.
    """
    av = require_av()
    with av.open(str(path)) as file:
        if not file.streams.video:
            raise UserError(f"{path} holds no stream of images; give another file")
        for frame in file.decode(video=0):
            yield Image.fromarray(frame.to_ndarray(format="rgb24"))


def has_settings(path: Path) -> bool:
    """Whether a GIF or MP4 file carries settings; decodes nothing.

    Raises:
        OSError: it cannot be read.
    """
    return OPENING in path.read_bytes()


def require_av() -> Any:
    """PyAV.

    Raises:
        UserError: it is missing.
    """
    try:
        import av
    except ImportError:
        raise missing_extra("an MP4", "av", "video") from None
    return av


def film(clips: Tensor) -> Tensor:
    """The frames of clips one after the other, for a grid of F columns: uint8 [N, C, F, H, W] -> [N * F, C, H, W]."""
    return clips.transpose(1, 2).flatten(0, 1)


def _frames(clip: Tensor) -> list[np.ndarray]:
    """uint8 [C, F, H, W] -> F of [H, W, 3 or 1]."""
    channels = 3 if clip.shape[0] == 3 else 1
    return [np.ascontiguousarray(frame) for frame in clip[:channels].permute(1, 2, 3, 0).cpu().numpy()]


def _write(path: Path, write: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, durable=False) as temporary:
            write(temporary)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; give a writable place with enough room"
        ) from None
