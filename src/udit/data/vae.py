"""What the files of a VAE decide of a ``VAECodec``: its numbers and the digest of its weights; free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from udit import hub
from udit.data.codec_config import CodecConfig, VAECodec
from udit.errors import UserError
from udit.files import file_sha256
from udit.spec.base import Spec, parse

VAE_CONFIG = "config.json"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE_FILES = (VAE_CONFIG, VAE_WEIGHTS)


class VAEFacts(Spec):
    """What matters of a VAE's own ``config.json``."""

    model_config = Spec.model_config | {"extra": "ignore"}

    in_channels: PositiveInt = 3
    latent_channels: PositiveInt = 4
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=16)] = (64,)
    scaling_factor: PositiveFloat = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[PositiveFloat, ...] | None = None

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def scale(self) -> float | tuple[float, ...]:
        """Of (z - shift) * scale; divided by each channel's standard deviation where the VAE lists them."""
        return tuple(self.scaling_factor / std for std in self.latents_std) if self.latents_std else self.scaling_factor

    @property
    def shift(self) -> float | tuple[float, ...]:
        """Of (z - shift) * scale."""
        return self.latents_mean or self.shift_factor or 0.0


def complete(codec: CodecConfig) -> CodecConfig:
    """The codec with every number that its files decide; only a VAE has files.

    Raises:
        UserError: the VAE's files cannot be read, are not the ones that ``codec.sha256`` names, or numbers of the codec
            do not fit each other.
    """
    if not isinstance(codec, VAECodec):
        return codec
    folder = Path(codec.source).expanduser()
    changes: dict[str, Any] = {}
    if folder.is_dir():
        changes = {"source": str(folder.resolve()), "sha256": weights_sha256(folder)}
        check_sha256(codec, changes["sha256"])
    elif not hub.is_hub_id(codec.source):
        raise UserError(f"codec.source is {codec.source!r}, no folder; give that of a VAE, or a hub id (owner/name)")
    if None in (codec.channels, codec.factor, codec.scale, codec.shift):
        facts = read_facts(codec.source, codec.revision)
        numbers = {
            "channels": facts.latent_channels,
            "factor": facts.factor,
            "scale": facts.scale,
            "shift": facts.shift,
        }
        given = codec.model_dump(exclude_none=True)
        changes |= {key: value for key, value in numbers.items() if key not in given}
    codec = codec.replace(**changes)
    for key, value in (("scale", codec.scale), ("shift", codec.shift)):
        if isinstance(value, tuple) and len(value) != codec.channels:
            raise UserError(
                f"codec.{key} has {len(value)} numbers and the latents have {codec.channels} channels; give one "
                "number, or one per channel"
            )
    return codec


def check_sha256(codec: VAECodec, found: str) -> None:
    """Refuses weights of another VAE than the one whose digest the codec holds.

    Raises:
        UserError: the digests differ.
    """
    if codec.sha256 not in (None, found):
        raise UserError(
            f"the VAE at {codec.source!r} has weights {found[:12]} and this model's latents came from "
            f"{str(codec.sha256)[:12]} (sha256); decoding with another VAE gives noise, put the right one there"
        )


def read_facts(source: str, revision: str | None = None) -> VAEFacts:
    """The ``config.json`` of a VAE's folder or hub id.

    Raises:
        UserError: it cannot be read, or is not an AutoencoderKL's.
    """
    path = folder_of(source, revision, (VAE_CONFIG,)) / VAE_CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"the VAE's {path} cannot be read ({detail}); give the folder that holds it") from None
    name = values.get("_class_name") if isinstance(values, dict) else None
    if name != "AutoencoderKL":
        raise UserError(f"{path} says _class_name {name!r}; the vae codec takes diffusers' AutoencoderKL")
    return parse(VAEFacts, values, where=str(path))


def folder_of(source: str, revision: str | None = None, files: tuple[str, ...] = VAE_FILES) -> Path:
    """The folder of a VAE, downloaded from the hub where ``source`` is not a folder.

    Raises:
        UserError: there is none.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    return hub.snapshot(
        source,
        files,
        what=f"the VAE at {source!r} is no folder",
        revision=revision,
        remedy=f"put {' and '.join(files)} into a folder and give that as codec.source; beside a model, into its "
        "folder vae/",
    )


def weights_sha256(folder: Path) -> str:
    """sha256 of the weights in a VAE's folder.

    Raises:
        UserError: there are none.
    """
    path = folder / VAE_WEIGHTS
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(
            f"the VAE's weights {str(path)!r} cannot be read ({error.strerror}); pickled weights are not opened, ask "
            "for safetensors"
        ) from None


def cached_sha256(source: str) -> str | None:
    """sha256 of the weights of a hub VAE that has been downloaded before; None where it has not."""
    path = hub.cached(source, VAE_WEIGHTS)
    return None if path is None else weights_sha256(path.parent)
