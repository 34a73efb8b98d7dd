"""Generated images on disk until they are scored, in shards.

A process that is killed while it samples continues where it was, and any number of ranks samples the same images.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from udit import rng
from udit.data.captions import captions_of
from udit.data.sources import Pixels, parts_of
from udit.errors import UserError
from udit.evaluation import npz
from udit.evaluation.image_set import ImageSet

if TYPE_CHECKING:
    from udit.diffusion.config import SamplingConfig
    from udit.run.config import EvaluationConfig, Run


def labels_for(count: int, num_classes: int, order: Literal["balanced", "random"], first_seed: int) -> list[int]:
    """One label per image: all classes in turn, or uniform ones keyed by the image's seed."""
    if order == "balanced":
        return [i % num_classes for i in range(count)]
    generators = (rng.generator(first_seed + i, "label") for i in range(count))
    return [int(torch.randint(num_classes, (1,), generator=generator)) for generator in generators]


class Shards:
    """Generated images on disk, ``size`` per file. A file is a batch, so bits do not depend on the number of ranks."""

    def __init__(self, parent: Path, key: dict[str, Any], count: int, size: int) -> None:
        """Takes the parent folder, what the images depend on, how many there are in all, and how many a shard holds."""
        digest = hashlib.sha256(json.dumps(key | {"size": size}, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = parent / f"samples-{digest}"
        self.count, self.size = count, size

    def __len__(self) -> int:
        """Number of shards."""
        return -(-self.count // self.size)

    def places(self, shard: int) -> range:
        """Indices of the images that a shard holds."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def missing(self, rank: int = 0, world: int = 1) -> Iterator[int]:
        """This rank's shards that are missing or damaged."""
        for shard in range(rank, len(self), world):
            if self._read(shard) is None:
                yield shard

    def write(self, shard: int, images: Pixels) -> None:
        """Writes one, completely or not at all; images are uint8 [n, C, H, W]."""
        assert len(images) == len(self.places(shard))
        npz.write(self._path(shard), images=images)

    def images(self) -> ImageSet:
        """All images, which are read from the shards when they are needed.

        Raises:
            UserError: a shard is missing or damaged.
        """
        if lost := list(self.missing()):
            raise UserError(f"{len(lost)} shards of {self.folder} are missing; run the same command again")
        channels, height, width = self._whole(0).shape[1:]
        return ImageSet(self.count, (channels, height, width), self._images)

    def bytes(self, shape: tuple[int, int, int]) -> int:
        """About what all of them take on disk, for images (C, H, W)."""
        return self.count * int(np.prod(shape))

    def bytes_missing(self, shape: tuple[int, int, int]) -> int:
        """About what those that are not there yet will take."""
        count = sum(len(self.places(shard)) for shard in range(len(self)) if not self._path(shard).is_file())
        return count * int(np.prod(shape))

    def remove(self) -> None:
        """Removes all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.npz"

    def _read(self, shard: int) -> Pixels | None:
        """A shard, or None where it is missing or damaged: reading checks the archive's checksums."""
        path = self._path(shard)
        if not path.is_file():
            return None
        try:
            images = npz.read(path).images
        except UserError:
            return None
        return images if images is not None and len(images) == len(self.places(shard)) else None

    def _whole(self, shard: int) -> Pixels:
        images = self._read(shard)
        if images is None:
            raise UserError(f"shard {self._path(shard)} is missing or damaged; run the same command again")
        return images

    def _images(self, ids: NDArray[np.int64]) -> Pixels:
        """The images of some indices, [n, C, H, W]."""
        owners = ids // self.size
        found: Pixels | None = None
        for shard in np.unique(owners).tolist():
            images, mine = self._whole(shard), owners == shard
            if found is None:
                found = np.empty((len(ids), *images.shape[1:]), np.uint8)
            found[mine] = images[ids[mine] - shard * self.size]
        assert found is not None, "asked for at least one image"
        return found


def held_out_captions(run: Run, count: int) -> list[str]:
    """The prompts of so many images: captions of the validation part, image after image, and of each in turn.

    Raises:
        UserError: no image is held out for validation, or the images have no captions.
    """
    source = run.data.scored().build()
    part, captions = parts_of(source, run.data).test, captions_of(source)
    if captions is None:
        raise UserError("the model takes texts and the images have no captions to sample with; set data.captions")
    if not len(part):
        raise UserError(
            "the model takes texts, scores take the captions of held-out images, and data.test_share holds none out; "
            "raise it in a new run"
        )
    return [captions.chosen(int(part[i % len(part)]), i // len(part)) for i in range(count)]


def drawing_of(
    config: EvaluationConfig, sampling: SamplingConfig, prompts: Sequence[str] | None = None
) -> dict[str, Any]:
    """What generated images depend on besides the weights, as plain values; of prompts their digest."""
    told: dict[str, Any] = {"labels": config.labels}
    if prompts is not None:
        digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
        told = {"prompts": "captions of held-out images", "prompts_sha256": digest}
    return {
        "sampling": sampling.model_dump(mode="json"),
        **told,
        "first_seed": config.first_seed,
        "batch_size": config.batch_size,
    }


def shards_of(
    weights: str,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    folder: Path,
    prompts: Sequence[str] | None = None,
) -> Shards:
    """Where the images of some weights and settings are kept until they are scored."""
    key = {"weights": weights, "drawing": drawing_of(config, sampling, prompts)}
    return Shards(folder, key, config.num_samples, config.batch_size)


def seeds_of(config: EvaluationConfig, classes: int) -> dict[str, Any]:
    """By which seeds and labels images were drawn: those of two ways with equal facts are pairs."""
    facts = {"num_samples": config.num_samples, "first_seed": config.first_seed, "labels": config.labels}
    return facts | {"classes": classes}
