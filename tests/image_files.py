"""Images and data sets that tests write."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from runs import environment


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder(root: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise(10, 12, seed=i).save(root / name / f"{i}.png")
    return root


def idx(root: Path, part: str, images: np.ndarray, labels: np.ndarray, packed: bool = True) -> Path:
    """Writes the two files of a part of an IDX data set; returns the folder."""
    root.mkdir(exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
        path = root / f"{part}-{name}-ubyte"
        if packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)
    return root


def garments(root: Path, train: int = 40, test: int = 10, side: int = 28, packed: bool = True) -> Path:
    """Writes random images in the files of Fashion-MNIST; returns the folder."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        idx(root, part, random.integers(0, 256, (count, side, side), np.uint8), np.arange(count) % 10, packed)
    return root


def bomb(side: int = 8_773) -> bytes:
    """A PNG of one bit per pixel, 10 KB by default, that becomes side * side * 3 bytes of RGB: 231 MB."""
    return png(
        struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), zlib.compress(bytes(side * (1 + (side + 7) // 8)), 9)
    )


def png(header: bytes, body: bytes) -> bytes:
    """A PNG of these IHDR and IDAT chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def troubled(root: Path) -> Path:
    """Writes ten classes of 64x64 colour images, one of them empty, with a corrupt file, a CMYK one and a bomb."""
    for label in range(9):
        (root / f"class-{label}").mkdir(parents=True)
        for i in range(6):
            noise(64, 64, seed=10 * label + i).save(root / f"class-{label}" / f"{i}.png")
    (root / "empty").mkdir()
    whole = (root / "class-2" / "3.png").read_bytes()
    (root / "class-2" / "3.png").write_bytes(whole[: len(whole) // 2])
    (root / "class-4" / "bomb.png").write_bytes(bomb())
    noise(64, 64).convert("CMYK").save(root / "class-7" / "cmyk.jpg")
    return root


MEASURED = """
import re, sys
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
try:
    {}
finally:
    sys.stderr.write(f"\\npeak {{peak()}}\\n")
"""


def peak_megabytes(statement: str, *arguments: str | Path) -> tuple[int, str, str, int]:
    """Runs a statement in a fresh process; its exit code, output, errors, and the most memory it ever held."""
    words = [sys.executable, "-c", MEASURED.format(statement), *map(str, arguments)]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    errors, _, peak = ended.stderr.rpartition("\npeak ")
    return ended.returncode, ended.stdout, errors, int(peak)


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """The data with some bytes changed, removed or inserted, or truncated."""
    changed = bytearray(data)
    kind = random.integers(4)
    place = int(random.integers(len(changed)))
    if kind == 0:
        for _ in range(int(random.integers(1, 9))):
            changed[int(random.integers(len(changed)))] = int(random.integers(256))
    elif kind == 1:
        del changed[place : place + int(random.integers(1, 40))]
    elif kind == 2:
        changed[place:place] = random.bytes(int(random.integers(1, 40)))
    else:
        del changed[max(1, place) :]
    return bytes(changed)
