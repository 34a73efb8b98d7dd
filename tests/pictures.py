"""Pictures and data sets that tests write."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image


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
    """Writes random pictures in the files of Fashion-MNIST; returns the folder."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        idx(root, part, random.integers(0, 256, (count, side, side), np.uint8), np.arange(count) % 10, packed)
    return root
