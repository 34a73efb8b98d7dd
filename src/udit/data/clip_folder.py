"""Folders of clips, one folder per class or without labels: GIF and MP4 files, and folders of numbered frames."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from udit.clips import read_gif, read_mp4, require_av
from udit.data.config import ClipFolderData, DataInfo
from udit.data.decode import DECODE_ERRORS, cropped
from udit.data.listing import is_image
from udit.data.sources import Pixels
from udit.errors import UserError

READERS = {".gif": read_gif, ".mp4": read_mp4}
NUMBER = re.compile(r"(\d+)\D*$")
"""The last number in a frame's name."""


def describe(data: ClipFolderData) -> DataInfo:
    """Class names from the names of the folders that hold clips.

    Raises:
        UserError: see ``listed``.
    """
    names = tuple(name for name in listed(data.root) if name)
    return DataInfo(
        channels=data.channels,
        height=data.size,
        width=data.size,
        frames=data.frames,
        id2label=names,
        labelled=bool(names),
    )


def listed(root: Path) -> dict[str, list[Path]]:
    """The clips of every class, sorted; of clips without labels, those of the class "".

    A clip is a GIF or MP4 file, or a folder of numbered image files. Where ``root`` holds clips itself they have no
    labels; otherwise every folder in it is a class.

    Raises:
        UserError: no such folder, no clips in it, or a class without any.
    """
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f"data.root is {str(root)!r}, no folder; give one that holds a folder of clips per class")
    if clips := _clips(root):
        return {"": clips}
    classes = {folder.name: _clips(folder) for folder in _folders(root)}
    empty = next((name for name, clips in classes.items() if not clips), None)
    if not classes or empty is not None:
        where = root if empty is None else root / empty
        raise UserError(
            f"{str(where)!r} holds no clips: GIF or MP4 files, or a folder of numbered frames for each; add some"
        )
    return classes


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _clips(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.suffix.lower() in READERS and p.is_file() and p.name[0] != "."]
    return sorted([*files, *(path for path in _folders(folder) if _frames(path))])


def _frames(folder: Path) -> list[Path]:
    """The numbered frames of a folder, in the order of their numbers."""
    images = [path for path in folder.iterdir() if is_image(path.name) and path.suffix.lower() != ".gif"]
    numbered = [(int(found[1]), path) for path in images if (found := NUMBER.search(path.stem))]
    return [path for _, path in sorted(numbered)]


class ClipFolder:
    """The clips of a folder, of each its first ``frames`` frames, cropped to squares as images are."""

    def __init__(self, data: ClipFolderData) -> None:
        """Lists the folder; decodes nothing.

        Raises:
            UserError: see ``listed``; or PyAV is missing and there are MP4 files.
        """
        self.data = data
        self.root = data.root.expanduser()
        classes = listed(data.root)
        self.paths = [path for clips in classes.values() for path in clips]
        if any(path.suffix.lower() == ".mp4" for path in self.paths):
            require_av()
        self.labels = np.repeat(np.arange(len(classes)), [len(clips) for clips in classes.values()])
        self.names: Sequence[str] = [path.relative_to(self.root).as_posix() for path in self.paths]
        self.held_out = np.empty(0, np.int64)
        digest = hashlib.sha256(f"{data.frames} {data.every} {data.size} {data.channels}\n".encode())
        for name, path in zip(self.names, self.paths, strict=True):
            sizes = [file.stat().st_size for file in (_frames(path) if path.is_dir() else [path])]
            digest.update(f"{name}\0{sizes}\n".encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.paths)

    def image(self, i: int) -> Pixels:
        """Clip ``i``, [C, F, H, W] in 0..255.

        Raises:
            UserError: it cannot be decoded, is shorter than ``frames``, or has frames of two sizes.
        """
        path, wanted, every = self.paths[i], self.data.frames, self.data.every
        frames: list[np.ndarray] = []
        first: tuple[int, int] | None = None
        try:
            for number, frame in enumerate(islice(_decoded(path), (wanted - 1) * every + 1)):
                first = first or frame.size
                if frame.size != first:
                    sizes = " and ".join("{}x{}".format(*size) for size in (first, frame.size))
                    raise UserError(f"{path} has frames of {sizes}; all frames of a clip must have one size")
                if number % every == 0:
                    frames.append(cropped(frame, self.data.size, self.data.channels))
        except UserError:
            raise
        except DECODE_ERRORS as error:
            detail = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be decoded ({detail}); remove or replace it") from None
        if len(frames) < wanted:
            raise UserError(
                f"{path} has {len(frames)} frames" + (f" (every {every} of them)" if every > 1 else "") + f" and "
                f"data.frames asks for {wanted}; lower it, or remove the clip"
            )
        return np.stack(frames, axis=1)

    def verify(self) -> None:
        """Decodes every clip once.

        Raises:
            UserError: clips that cannot be read, or do not fit; the first.
        """
        for i in range(len(self)):
            self.image(i)


def _decoded(path: Path) -> Iterator[Image.Image]:
    if not path.is_dir():
        yield from READERS[path.suffix.lower()](path)
        return
    for file in _frames(path):
        with Image.open(file) as image:
            yield image.convert("RGB")
