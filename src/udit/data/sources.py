"""Where pictures come from, free of torch: the embedded digits, folders of class folders, and how they are split."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from udit.errors import UserError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
"""Largest picture that is decoded; a small file can claim to be a huge picture."""
MAX_MEMORY = 2**30
"""Bytes up to which a decoded data set is kept in memory."""
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

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Labelled pictures of one size."""

    labels: Labels
    """[N]"""
    names: Sequence[str]
    """What errors and the split call picture i; unlike for each."""
    fingerprint: str
    """sha256 in hex; another data set has another one."""

    def __len__(self) -> int:
        """Number of pictures."""

    def image(self, i: int) -> Pixels:
        """Picture ``i``, [C, H, W] in 0..255.

        Raises:
            UserError: a picture that cannot be decoded.
        """

    def verify(self) -> None:
        """Decodes every picture once, so that a broken one is found before the first step.

        Raises:
            UserError: pictures that cannot be decoded; names the first.
        """


class InMemory:
    """Pictures that are already decoded."""

    def __init__(self, pixels: Pixels, labels: Labels, names: Sequence[str]) -> None:
        """Takes [N, C, H, W] pixels, [N] labels and N unlike names."""
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 4
        assert len(pixels) == len(labels) == len(names)
        self.pixels = pixels
        self.labels = labels.astype(np.int64)
        self.names = names
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(np.ascontiguousarray(pixels).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def image(self, i: int) -> Pixels:
        """Picture ``i``, [C, H, W]."""
        picture: Pixels = self.pixels[i]
        return picture

    def verify(self) -> None:
        """Nothing can be wrong."""


def digits() -> InMemory:
    """scikit-learn's 1,797 handwritten digits, [1, 8, 8], their 0..16 stretched to 0..255.

    Raises:
        UserError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("data.kind=digits needs scikit-learn; run: pip install 'udit[train]'") from None
    loaded = load_digits()
    pixels = np.round(loaded.images[:, None] * (255 / 16)).astype(np.uint8)
    return InMemory(pixels, loaded.target, [f"digit {i}" for i in range(len(pixels))])


def class_names(root: Path | str) -> list[str]:
    """The class folders in ``root``, sorted; hidden ones do not count.

    Raises:
        UserError: no such folder, no class folders in it, or one without pictures.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(
            f"data.root is {str(root)!r}, no folder; give one that holds a folder of pictures for each class"
        )
    try:
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"data.root {str(root)!r} cannot be listed ({error.strerror}); check its permissions") from None
    if not names:
        raise UserError(
            f"data.root {str(root)!r} holds no class folders; put each class's pictures in a folder of its own"
        )
    for name in names:
        if next(_files(root / name), None) is None:
            raise UserError(
                f"class folder {str(root / name)!r} holds no PNG, JPEG or WebP picture; add some or remove it"
            )
    return names


def _files(folder: Path, *, others: bool = False) -> Iterator[Path]:
    """Visible pictures in a folder and below; with ``others``, the visible files that are not pictures."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and (path.suffix.lower() in SUFFIXES) != others and path.is_file():
                yield path


class ImageFolder:
    """A folder of class folders of pictures, cut square as ADM does (Dhariwal & Nichol 2021)."""

    def __init__(self, root: Path | str, size: int, channels: Literal[1, 3]) -> None:
        """Lists the folder; decodes nothing.

        Args:
            root: holds one folder a class; folders inside these belong to the class.
            size: side of the pictures in pixels.
            channels: 3 for RGB, 1 for grey.

        Raises:
            UserError: see ``class_names``.
        """
        self.root = Path(root).expanduser()
        self.size = size
        self.channels = channels
        names: list[str] = []
        labels: list[int] = []
        digest = hashlib.sha256()
        for label, name in enumerate(class_names(self.root)):
            paths = sorted(path.relative_to(self.root).as_posix() for path in _files(self.root / name))
            names += paths
            labels += [label] * len(paths)
        for name in names:
            digest.update(f"{name}\0{(self.root / name).stat().st_size}\n".encode("utf-8", "surrogateescape"))
        self.names: Sequence[str] = names
        self.labels = np.array(labels, np.int64)
        self.fingerprint = digest.hexdigest()
        self._pixels: Pixels | None = None
        self._warn_of_others()

    def _warn_of_others(self) -> None:
        others = [path for name in class_names(self.root) for path in _files(self.root / name, others=True)]
        if others:
            logger.warning(
                "%d files in %s are no PNG, JPEG or WebP and left out, e.g. %s", len(others), self.root, others[0]
            )

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def image(self, i: int) -> Pixels:
        """Picture ``i``, [C, H, W] in 0..255.

        Raises:
            UserError: it cannot be decoded, or is larger than ``MAX_PIXELS``.
        """
        if self._pixels is not None:
            picture: Pixels = self._pixels[i]
            return picture
        return decode(self.root / self.names[i], self.size, self.channels)

    def verify(self) -> None:
        """Decodes every picture once, and keeps them all if they fit into ``MAX_MEMORY``.

        Raises:
            UserError: pictures that cannot be decoded; names the first and counts them.
        """
        if self._pixels is not None:
            return
        shape = (len(self), self.channels, self.size, self.size)
        pixels = np.empty(shape, np.uint8) if math.prod(shape) <= MAX_MEMORY else None
        bad: list[str] = []
        with (
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            tqdm(total=len(self), desc="decoding", unit="picture", disable=not sys.stderr.isatty(), leave=False) as bar,
        ):
            # in slices, for map() would queue a whole ImageNet at once
            for start in range(0, len(self), 256):
                for i, result in enumerate(pool.map(self._attempt, range(start, min(start + 256, len(self)))), start):
                    if isinstance(result, str):
                        bad.append(result)
                    elif pixels is not None:
                        pixels[i] = result
                    bar.update()
        if len(bad) > 1:
            raise UserError(f"{bad[0]} ({len(bad)} of {len(self)} pictures are unusable)")
        if bad:
            raise UserError(bad[0])
        self._pixels = pixels

    def _attempt(self, i: int) -> Pixels | str:
        try:
            return self.image(i)
        except UserError as error:
            return str(error)


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


@dataclass(frozen=True)
class Parts:
    """Which pictures are for what; sorted indices, no two parts share one."""

    train: Labels
    """The generator's; also what samples are compared with."""
    judge: Labels
    """Trains the classifier that judges samples."""
    test: Labels
    """Seen by neither."""


def split(labels: Labels, names: Sequence[str], judge_share: float, test_share: float) -> Parts:
    """Splits every class by the same shares, rounded down.

    Within a class, pictures are ordered by the sha256 of their names, so new pictures do not shuffle the old ones.

    Args:
        labels: [N]
        names: N unlike names.
        judge_share: of each class, in [0, 1).
        test_share: of each class; both shares sum to less than 1, so each class keeps a picture to train on.
    """
    hashes = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    train: list[int] = []
    judge: list[int] = []
    test: list[int] = []
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: hashes[i])
        # 100 * 0.29 is 28.999...
        num_judge = math.floor(len(members) * judge_share + 1e-9)
        num_test = min(math.floor(len(members) * test_share + 1e-9), len(members) - 1 - num_judge)
        judge += members[:num_judge]
        test += members[num_judge : num_judge + num_test]
        train += members[num_judge + num_test :]
    return Parts(*(np.array(sorted(part), np.int64) for part in (train, judge, test)))
