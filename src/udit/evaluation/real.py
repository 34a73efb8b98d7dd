"""What scores by a judge need of a data set's real images alone: found once, and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udit.data.sources import Labels, Parts, Source, digest_of
from udit.evaluation.frechet import Array
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import Judge
from udit.evaluation.judges import cached
from udit.evaluation.metrics import Balls, lower_to_nearest
from udit.files import whole_file
from udit.progress import progress_bar

VERSION = 1
"""Of what is kept."""


@dataclass(frozen=True)
class RealImages:
    """The images that a generator was trained on, and those held out for tests.

    Attributes:
        balls: of the training images' features [M, D].
        digest: sha256 of the training images.
        right: training images on which the judge is right.
        test: features of the test images, [T, D].
        nearest: distance in pixel values of each test image to its closest training image, [T].
    """

    balls: Balls
    digest: str
    right: int
    test: Array
    nearest: Array

    @classmethod
    def of(cls, judge: Judge, source: Source, parts: Parts) -> RealImages:
        """Those of a data set as its judge sees them; read where they are kept, else found and kept."""
        facts = (VERSION, judge.fingerprint, source.fingerprint, digest_of(parts.train), digest_of(parts.test))
        name = hashlib.sha256(" ".join(map(str, facts)).encode())
        path = cached(f"{name.hexdigest()}.npz")
        found = _read(path)
        if found is None:
            found = _found(judge, source, parts)
            with contextlib.suppress(OSError):  # a cache that cannot be written is not an error
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as temporary, temporary.open("wb") as file:
                    np.savez(file, **found._arrays())
        return found

    def _arrays(self) -> dict[str, Any]:
        alone = {"digest": np.array(self.digest), "right": np.array(self.right)}
        return alone | vars(self.balls) | {"test": self.test, "nearest": self.nearest}


def _read(path: Path) -> RealImages | None:
    """What a file holds; None where it is not there, or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile), np.load(path) as kept:
        balls = Balls(kept["features"], kept["radii"], kept["dense"])
        return RealImages(balls, str(kept["digest"]), int(kept["right"]), kept["test"], kept["nearest"])
    return None


def _found(judge: Judge, source: Source, parts: Parts) -> RealImages:
    labels: Labels = source.labels[parts.train]
    images = ImageSet.of_source(source, parts.train)
    test = ImageSet.of_source(source, parts.test).kept()
    digest = hashlib.sha256(repr(images.shape).encode())
    features: list[Array] = []
    nearest, right, done = np.full(len(test), np.inf), 0, 0
    with progress_bar(2 * len(images), "real images, once", "image", leave=False) as bar:
        for chunk in images.chunks():
            features.append(judge.features(chunk))
            right += int((judge.classes(features[-1]) == labels[done : done + len(chunk)]).sum())
            lower_to_nearest(nearest, test, chunk)
            digest.update(chunk.tobytes())
            done += len(chunk)
            bar.update(len(chunk))
        balls = Balls.around(np.concatenate(features), on_rows=bar.update)
    return RealImages(balls, digest.hexdigest(), right, test.map(judge.features), nearest)
