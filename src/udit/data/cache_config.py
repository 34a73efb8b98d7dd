"""What a latent cache's files say, and how a run is compared with it; free of torch. ``latents.py`` reads it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from udit.data.codec_config import CodecConfig, VAECodec
from udit.data.config import DataConfig, DataInfo, ImageFiles
from udit.errors import UserError
from udit.files import seal
from udit.spec.base import Spec
from udit.spec.digest import FileFacts, Sha256

PLAN, MANIFEST, INDEX = "plan.json", "manifest.json", "index.safetensors"
FREE_DATA_KEYS = frozenset({"judge_share", "test_share", "flip", "condition"})
"""Of a run's data section: keys that may differ from the cache's, which holds all images."""
NEWER_DATA_KEYS = {
    "bits": 16,
    "deep": False,
    "buckets": [],
    "crops": 1,
    "condition": None,
    "label_by": "folder",
    "file_column": None,
    "label_column": None,
}
"""Of a run's data section: keys that caches of older versions do not have, and what they are of those."""
PLACES = ("root", "test_root", "labels")
"""Of a run's data section: where the data are, which the fingerprint takes the place of."""
FREE_CODEC_KEYS = frozenset({"source", "revision", "posterior", "slicing"})
"""Of a run's codec: keys that do not change the latents; sha256 says which VAE it is, wherever it is stored."""


class Shard(NamedTuple):
    """The images of a shard."""

    bucket: int
    """Number of their shape."""
    first: int
    """Place of the first one among the images of that shape."""
    size: int
    """How many there are."""


class TeacherFacts(Spec):
    """A vision model whose features a latent cache holds too."""

    name: str
    sha256: Sha256
    """Of its weights."""
    side: PositiveInt
    """Pixels to which it scales an image's sides."""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(Z, h, w) of an image's features; they are float16."""


class LatentPlan(Spec):
    """``plan.json``: everything that decides the bytes of a latent cache."""

    format: Literal[1] = 1
    data: DataConfig
    """Where the images came from."""
    fingerprint: Sha256
    """Of the images."""
    count: PositiveInt
    """Of the images."""
    counts: tuple[NonNegativeInt, ...] = ()
    """Of the images of each shape, where there are several: that of ``pixels``, then ``data.buckets``."""
    id2label: tuple[str, ...]
    pixels: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(C, H, W) of an image."""
    codec: CodecConfig
    measured: bool = False
    """Whether scale and shift are computed from the cache's own latents."""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(c, h, w) of a raw latent: uint8 pixels, the mean and log variance of a posterior, or floats without one."""
    dtype: Literal["uint8", "float16", "float32"]
    mirrored: bool
    """Whether each image is stored twice, as it is and mirrored left to right."""
    shard_size: PositiveInt
    """Images per shard."""
    teacher: TeacherFacts | None = None
    """Whose features are stored beside the latents; None stores none."""

    @model_validator(mode="after")
    def _check(self) -> LatentPlan:
        seen = self.codec.seen(self.info)
        latents = isinstance(self.codec, VAECodec)
        moments = isinstance(self.codec, VAECodec) and self.codec.has_posterior
        wanted = (seen.channels * (2 if moments else 1), seen.height, seen.width)
        if self.shape != wanted:
            raise ValueError(f"shape is {self.shape} and the codec makes {wanted} of {self.pixels}; encode again")
        floats = latents or getattr(self.data, "deep", False)
        if (self.dtype == "uint8") == floats:
            raise ValueError(f"dtype is {self.dtype}; pixels of 8 bits are uint8 and all else floats, encode again")
        if len(self.counts or (self.count,)) != len(self.data.shapes or (1,)) or sum(self.counts) not in (
            0,
            self.count,
        ):
            raise ValueError(f"counts are {list(self.counts)} of {self.count} images; encode again")
        return self

    @property
    def info(self) -> DataInfo:
        """Channels, size and class names of the images; of several shapes, those of the first."""
        return self._info(*self.pixels[1:])

    def _info(self, height: int, width: int) -> DataInfo:
        return DataInfo(
            channels=self.pixels[0],
            height=height,
            width=width,
            id2label=self.id2label,
            labelled=bool(self.id2label),
            captioned=self.data.captioned,
        )

    def raw_shape(self, bucket: int) -> tuple[int, int, int]:
        """(c, h, w) of a raw latent of the images of one shape."""
        if not bucket:
            return self.shape
        seen = self.codec.seen(self._info(*self.data.shapes[bucket]))
        return self.shape[0], seen.height, seen.width

    @property
    def digest(self) -> str:
        """sha256 in hex of everything in the plan except the places of images and VAE."""
        return hashlib.sha256(seal(self.comparable()).encode()).hexdigest()

    def comparable(self) -> dict[str, Any]:
        """Plain values of the keys that decide the bytes."""
        values = self.model_dump(mode="json")
        for key in PLACES:
            values["data"].pop(key, None)
        values["data"] = {key: value for key, value in values["data"].items() if key not in FREE_DATA_KEYS}
        values["codec"] = {key: value for key, value in values["codec"].items() if key not in FREE_CODEC_KEYS}
        newer = NEWER_DATA_KEYS | ({"classes": []} if values["data"]["kind"] == "folder" else {})
        for key, value in newer.items():  # as older caches were all made
            if key in values["data"] and values["data"][key] == value:
                del values["data"][key]
        if not values["counts"]:  # older caches know images of one shape
            del values["counts"]
        if values["teacher"] is None:
            del values["teacher"]
        for key in ("captions", "caption"):  # older caches have none
            if values["data"].get(key, "") is None:
                del values["data"][key]
        if values["codec"].get("network") == "AutoencoderKL":  # older caches know no other
            del values["codec"]["network"]
        return values

    @property
    def views(self) -> int:
        """Latents of one image: of each crop, and of its mirror image."""
        return (self.data.crops if isinstance(self.data, ImageFiles) else 1) * (2 if self.mirrored else 1)

    @property
    def shard_count(self) -> int:
        """How many shards there are, without a list of them."""
        return sum(-(-count // self.shard_size) for count in self.counts or (self.count,))

    def shards(self) -> list[Shard]:
        """What each shard holds: images of one shape, in order."""
        return [
            Shard(bucket, first, min(self.shard_size, count - first))
            for bucket, count in enumerate(self.counts or (self.count,))
            for first in range(0, count, self.shard_size)
        ]


class LatentManifest(Spec):
    """``manifest.json`` of a finished latent cache."""

    plan: LatentPlan
    index: FileFacts
    """Labels, names and test images."""
    shards: tuple[FileFacts, ...]
    mean: tuple[float, ...] | None = None
    """Of latents, drawn where they have a posterior, one number per channel; None for pixels."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> LatentManifest:
        plan = self.plan
        wanted = plan.shard_count
        if len(self.shards) != wanted:
            raise ValueError(
                f"shards are {len(self.shards)} and {plan.count} images at {plan.shard_size} per shard are {wanted}; "
                "encode again"
            )
        channels = self.codec.seen(plan.info).channels
        if plan.measured and (self.mean is None or self.std is None or {len(self.mean), len(self.std)} != {channels}):
            raise ValueError(f"mean and std must have {channels} numbers each, the plan is measured; encode again")
        return self

    @property
    def codec(self) -> CodecConfig:
        """The plan's codec, with the measured normalisation where the plan is measured."""
        codec = self.plan.codec
        if not (self.plan.measured and isinstance(codec, VAECodec) and self.mean and self.std):
            return codec
        return codec.replace(shift=self.mean, scale=tuple(1 / std for std in self.std))


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def follow_cache(values: dict[str, Any], manifest: LatentManifest, root: Path) -> dict[str, Any]:
    """The data and codec sections of a run that reads a latent cache: the cache's, with the run's own keys on top.

    Args:
        values: the run's plain ``data`` and ``codec``, where it has them.
        manifest: of the cache.
        root: its folder, for messages.

    Returns:
        ``data`` and ``codec`` as plain values.

    Raises:
        UserError: a key of data or codec does not match the cache; names it with both values.
    """
    merged: dict[str, Any] = {}
    sections = (("data", manifest.plan.data, FREE_DATA_KEYS), ("codec", manifest.codec, FREE_CODEC_KEYS))
    for section, own, free in sections:
        kept = own.model_dump(mode="json")
        given = dict(values.get(section) or {})
        if given.get("kind", kept["kind"]) != kept["kind"]:
            raise UserError(_does_not_match(f"{section}.kind", given["kind"], kept["kind"], root))
        for key, value in given.items():
            if key not in free and key in kept and not _same(key, value, kept[key]):
                raise UserError(_does_not_match(f"{section}.{key}", value, kept[key], root))
        merged[section] = kept | given
    if merged["data"].get("flip") and not manifest.plan.mirrored:
        raise UserError(
            f"data.flip is true and the cache {str(root)!r} holds no mirrored images; set data.flip=false, or encode "
            "with data.flip=true into another folder"
        )
    return merged


def _same(key: str, given: Any, kept: Any) -> bool:
    if key == "root":
        return Path(str(given)).expanduser().resolve() == Path(str(kept))
    plain = [list(value) if isinstance(value, tuple) else value for value in (given, kept)]
    return bool(plain[0] == plain[1])


def _does_not_match(key: str, given: Any, kept: Any, root: Path) -> str:
    return (
        f"{key} is {given!r} and the latent cache {str(root)!r} was made with {kept!r}; leave {key} out, or encode "
        "into another folder"
    )
