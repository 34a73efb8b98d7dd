"""What the files of an autoencoder decide of a ``VAECodec``: its numbers and its weights' digest; free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AliasChoices, Field, PositiveFloat, PositiveInt

from udit import hub
from udit.data.codec_config import CodecConfig, VAECodec
from udit.errors import UserError
from udit.files import file_sha256
from udit.spec.base import Spec, parse

VAE_CONFIG = "config.json"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE_FILES = (VAE_CONFIG, VAE_WEIGHTS)


CLASSES = get_args(VAECodec.model_fields["network"].annotation)
"""Of diffusers, that can be read."""


class VAEFacts(Spec):
    """What matters of an autoencoder's own ``config.json``."""

    model_config = Spec.model_config | {"extra": "ignore", "validate_by_name": True, "validate_by_alias": True}

    network: str = Field(alias="_class_name")
    in_channels: PositiveInt = 3
    latent_channels: PositiveInt = 4
    block_out_channels: Annotated[
        tuple[PositiveInt, ...],
        Field(
            min_length=1,
            max_length=16,
            validation_alias=AliasChoices("encoder_block_out_channels", "block_out_channels"),
        ),
    ] = (64,)
    scaling_factor: PositiveFloat | None = None
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[PositiveFloat, ...] | None = None
    patch_size: tuple[PositiveInt, PositiveInt] = (1, 1)
    """Of AutoencoderKLFlux2: latents that become the channels of one."""
    batch_norm_eps: PositiveFloat = 1e-4
    """Of AutoencoderKLFlux2, whose latents are normalised by statistics among its weights."""

    @property
    def patch(self) -> int:
        """Side of the squares of latents that become channels."""
        return self.patch_size[0] if self.network == "AutoencoderKLFlux2" else 1

    @property
    def channels(self) -> int:
        """Of what the network sees."""
        return self.latent_channels * self.patch**2

    @property
    def factor(self) -> int:
        """Pixels per latent along each axis, squares of latents counted as one."""
        return int(2 ** (len(self.block_out_channels) - 1)) * self.patch

    @property
    def scale(self) -> float | tuple[float, ...]:
        """Of (z - shift) * scale; divided by each channel's standard deviation where the VAE lists them."""
        scale = self.scaling_factor or (0.18215 if self.network == "AutoencoderKL" else 1.0)
        return tuple(scale / std for std in self.latents_std) if self.latents_std else scale

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
        changes["network"] = facts.network
        numbers = {
            "channels": facts.channels,
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
        UserError: it cannot be read, or is of a class that is not in ``CLASSES``.
    """
    path = folder_of(source, revision, (VAE_CONFIG,)) / VAE_CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"the VAE's {path} cannot be read ({detail}); give the folder that holds it") from None
    name = values.get("_class_name") if isinstance(values, dict) else None
    if name not in CLASSES:
        raise UserError(f"{path} says _class_name {name!r}; the vae codec takes diffusers' {', '.join(CLASSES)}")
    facts = parse(VAEFacts, values, where=path)
    if facts.network == "AutoencoderKLFlux2":
        if facts.patch_size[0] != facts.patch_size[1]:
            raise UserError(f"{path} says patch_size {list(facts.patch_size)}; only squares are read")
        mean, std = _statistics(folder_of(source, revision), facts.batch_norm_eps)
        return facts.replace(latents_mean=mean, latents_std=std, scaling_factor=1.0)
    return facts


def _statistics(folder: Path, eps: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of FLUX.2's latents, by channel: those of a batch norm among its weights."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    path = folder / VAE_WEIGHTS
    try:
        with safe_open(path, framework="np") as weights:
            mean, variance = (weights.get_tensor(f"bn.running_{name}").astype(np.float64) for name in ("mean", "var"))
    except (OSError, SafetensorError) as error:
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise UserError(
            f"the VAE's weights {str(path)!r} cannot be read ({detail}), and FLUX.2's hold the scale of its latents; "
            "get them again"
        ) from None
    return tuple(mean.tolist()), tuple(np.sqrt(variance + eps).tolist())


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
