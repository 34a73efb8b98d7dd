"""What a latent cache says of itself, and how a run is checked against it; free of torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from udit.data.codec_config import CodecConfig, Sha256, VAECodec
from udit.data.config import DataConfig, DataInfo
from udit.errors import UserError
from udit.files import seal, unseal
from udit.spec.base import Spec, parse

PLAN, MANIFEST, INDEX = "plan.json", "manifest.json", "index.safetensors"
MAX_BYTES = 64_000_000
"""Of a plan or manifest that is read; ImageNet's has some 200,000."""
FREE_DATA_KEYS = frozenset({"judge_share", "test_share", "flip"})
"""Of a run's data section: what may differ from the cache's, for all pictures are in it."""
FREE_CODEC_KEYS = frozenset({"source", "revision", "posterior", "slicing"})
"""Of a run's codec: what does not change the latents; sha256 says which VAE it is, wherever that lies."""


class LatentPlan(Spec):
    """What decides every byte of a latent cache."""

    format: Literal[1] = 1
    data: DataConfig
    """Where the pictures came from."""
    fingerprint: Sha256
    """Of the pictures."""
    count: PositiveInt
    id2label: tuple[str, ...]
    pixels: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(C, H, W) of a picture."""
    codec: CodecConfig
    measured: bool = False
    """Whether scale and shift are this cache's own statistics."""
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """(c, h, w) of a raw latent: uint8 pixels, or a posterior's moments."""
    dtype: Literal["uint8", "float16", "float32"]
    mirrored: bool
    """Whether each picture is there twice, as it is and left to right."""
    shard_size: PositiveInt
    """Pictures a shard."""

    @model_validator(mode="after")
    def _check(self) -> LatentPlan:
        seen = self.codec.seen(self.info)
        moments = isinstance(self.codec, VAECodec)
        wanted = (seen.channels * (2 if moments else 1), seen.height, seen.width)
        if self.shape != wanted:
            raise ValueError(f"shape is {self.shape} and the codec makes {wanted} of {self.pixels}; encode again")
        if (self.dtype == "uint8") == moments:
            raise ValueError(f"dtype is {self.dtype}; pixels are uint8 and moments floats, encode again")
        return self

    @property
    def info(self) -> DataInfo:
        """Of the pictures."""
        channels, height, width = self.pixels
        return DataInfo(channels=channels, height=height, width=width, id2label=self.id2label)

    @property
    def digest(self) -> str:
        """sha256 in hex of all that the plan says but where pictures and VAE lie."""
        return hashlib.sha256(seal(self.comparable()).encode()).hexdigest()

    def comparable(self) -> dict[str, Any]:
        """Plain values of what decides the bytes."""
        values = self.model_dump(mode="json")
        values["data"].pop("root", None)
        values["data"] = {key: value for key, value in values["data"].items() if key not in FREE_DATA_KEYS}
        values["codec"] = {key: value for key, value in values["codec"].items() if key not in FREE_CODEC_KEYS}
        return values

    def shard_sizes(self) -> list[int]:
        """Pictures in each shard."""
        whole, rest = divmod(self.count, self.shard_size)
        return [self.shard_size] * whole + ([rest] if rest else [])


class FileFacts(Spec):
    """Size and digest of a file of the cache."""

    bytes: NonNegativeInt
    sha256: Sha256


class LatentManifest(Spec):
    """``manifest.json`` of a finished latent cache."""

    plan: LatentPlan
    index: FileFacts
    """Labels, names and held-out pictures."""
    shards: tuple[FileFacts, ...]
    mean: tuple[float, ...] | None = None
    """Of the latents, one a channel, posteriors' spread included; None without a posterior."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> LatentManifest:
        plan = self.plan
        wanted = -(-plan.count // plan.shard_size)
        if len(self.shards) != wanted:
            raise ValueError(
                f"shards are {len(self.shards)} and {plan.count} pictures at {plan.shard_size} a shard are {wanted}; "
                "encode again"
            )
        channels = self.codec.seen(plan.info).channels
        if plan.measured and (self.mean is None or self.std is None or {len(self.mean), len(self.std)} != {channels}):
            raise ValueError(f"mean and std must have {channels} numbers each, for the plan is measured; encode again")
        return self

    @property
    def codec(self) -> CodecConfig:
        """The plan's, with the measured normalisation where that was asked for."""
        codec = self.plan.codec
        if not (self.plan.measured and isinstance(codec, VAECodec) and self.mean and self.std):
            return codec
        return codec.replace(shift=self.mean, scale=tuple(1 / std for std in self.std))


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


def read_manifest(root: Path) -> LatentManifest:
    """What a finished cache says of itself.

    Raises:
        UserError: there is none, it is unfinished, or its manifest is torn or altered.
    """
    root = root.expanduser()
    if not (root / MANIFEST).is_file():
        state = "is unfinished; run the same `udit encode` again" if (root / PLAN).is_file() else "is not there"
        raise UserError(f"the latent cache {str(root)!r} {state}, or write one with `udit encode RECIPE --out FOLDER`")
    return parse(LatentManifest, read_sealed(root / MANIFEST), where=str(root / MANIFEST))


def read_sealed(path: Path) -> dict[str, Any]:
    """A sealed JSON file.

    Raises:
        UserError: it cannot be read, or is not what was sealed.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than any manifest")
        return unseal(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise UserError(f"{path} is torn or altered ({detail}); remove it and run `udit encode` again") from None


def follow_cache(values: dict[str, Any], root: Path) -> tuple[dict[str, Any], DataInfo]:
    """A run's plain values with the data and codec of its latent cache where it leaves them out.

    Returns:
        ``data`` and ``codec`` as plain values, and what is known of the pictures.

    Raises:
        UserError: a key of data or codec says otherwise than the cache; names it with both values.
    """
    manifest = read_manifest(root)
    plan = manifest.plan
    merged: dict[str, Any] = {}
    for section, own, free in (("data", plan.data, FREE_DATA_KEYS), ("codec", manifest.codec, FREE_CODEC_KEYS)):
        kept = own.model_dump(mode="json")
        given = dict(values.get(section) or {})
        if given.get("kind", kept["kind"]) != kept["kind"]:
            raise UserError(_unlike(f"{section}.kind", given["kind"], kept["kind"], root))
        for key, value in given.items():
            if key not in free and key in kept and not _same(key, value, kept[key]):
                raise UserError(_unlike(f"{section}.{key}", value, kept[key], root))
        merged[section] = kept | given
    if merged["data"].get("flip") and not plan.mirrored:
        raise UserError(
            f"data.flip is true and the cache {str(root)!r} holds no mirrored pictures; set data.flip=false, or encode "
            "with data.flip=true into another folder"
        )
    return merged, plan.info


def _same(key: str, given: Any, kept: Any) -> bool:
    if key == "root":
        return Path(str(given)).expanduser().resolve() == Path(str(kept))
    plain = [list(value) if isinstance(value, tuple) else value for value in (given, kept)]
    return bool(plain[0] == plain[1])


def _unlike(key: str, given: Any, kept: Any, root: Path) -> str:
    return (
        f"{key} is {given!r} and the latent cache {str(root)!r} was made with {kept!r}; leave {key} out, or encode "
        "into another folder"
    )
