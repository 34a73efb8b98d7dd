"""Configs of what stands between pixels and the network, free of torch.

What a codec makes of pixels before any scaling is *raw*: pixels again, or the moments of a VAE's posterior. What the
network sees is *normalised*: pixels in [-1, 1], or (z - shift) * scale with the numbers that stand in the codec's
config and nowhere else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from udit.data.config import DataInfo
from udit.errors import UserError, nearest
from udit.files import file_sha256
from udit.spec.base import Spec, parse

if TYPE_CHECKING:
    from udit.data.codec import Identity, LatentVAE, SpaceToDepth

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class IdentityCodec(Spec):
    """Pixel space: 0..255 becomes -1..1."""

    kind: Literal["identity"] = "identity"

    def resolved(self) -> IdentityCodec:
        """Nothing is left to look up."""
        return self

    def seen(self, pixels: DataInfo) -> DataInfo:
        """Channels and size of what the network sees of pictures."""
        return pixels

    def build(self) -> Identity:
        """The codec."""
        from udit.data.codec import Identity

        return Identity()


class SpaceToDepthCodec(Spec):
    """Pixels of factor x factor squares become channels: 1x32x32 is 4x16x16 at factor 2. Exact, and exactly undone."""

    kind: Literal["space-to-depth"] = "space-to-depth"
    factor: Annotated[int, Field(ge=2, le=64)] = 2
    """Side of the squares; the network's cost falls with its square."""

    def resolved(self) -> SpaceToDepthCodec:
        """Nothing is left to look up."""
        return self

    def seen(self, pixels: DataInfo) -> DataInfo:
        """Channels and size of what the network sees of pictures.

        Raises:
            UserError: the factor does not divide the size.
        """
        height, width = _divided(pixels, self.factor, "codec.factor")
        return pixels.replace(channels=pixels.channels * self.factor**2, height=height, width=width)

    def build(self) -> SpaceToDepth:
        """The codec."""
        from udit.data.codec import SpaceToDepth

        return SpaceToDepth(self.factor)


class VAECodec(Spec):
    """A VAE that diffusers' ``AutoencoderKL`` reads; the network sees (z - shift) * scale of its latents z.

    What is left out follows the VAE's own ``config.json`` and is written down when a run is resolved.
    """

    kind: Literal["vae"] = "vae"
    source: str
    """A folder with config.json and diffusion_pytorch_model.safetensors, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    channels: PositiveInt | None = None
    """Of the latents."""
    factor: PositiveInt | None = None
    """Pixels a latent, along each axis."""
    scale: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    """One number, or one a channel."""
    shift: float | tuple[float, ...] | None = None
    """One number, or one a channel; subtracted before scaling."""
    posterior: Literal["sample", "mode"] = "sample"
    """What training sees: a draw keyed by (seed, place in the run), or the mean. All else sees the mean."""
    slicing: bool = True
    """One picture at a time: least memory, and the same bits in any batch. Off is faster on a GPU."""
    tiling: bool = False
    """Large pictures in overlapping tiles: less memory, and slightly other values."""
    sha256: Sha256 | None = None
    """Of diffusion_pytorch_model.safetensors, as ``sha256sum`` prints it; another file is refused."""

    def resolved(self) -> VAECodec:
        """The same with every number that the VAE's files decide.

        Raises:
            UserError: they cannot be read, or the numbers do not fit each other.
        """
        folder = Path(self.source).expanduser()
        changes: dict[str, Any] = {}
        if folder.is_dir():
            changes = {"source": str(folder.resolve()), "sha256": vae_sha256(folder)}
            if self.sha256 not in (None, changes["sha256"]):
                raise UserError(other_vae(self.source, str(self.sha256), changes["sha256"]))
        elif self.source.count("/") != 1 or self.source.startswith((".", "/", "~")):
            raise UserError(f"codec.source is {self.source!r}, no folder; give that of a VAE, or a hub id (owner/name)")
        if None in (self.channels, self.factor, self.scale, self.shift):
            own = read_vae_config(self.source, self.revision)
            facts = {
                "channels": own.latent_channels,
                "factor": own.factor,
                "scale": own.scale,
                "shift": own.shift,
            }
            changes |= {key: value for key, value in facts.items() if getattr(self, key) is None}
        full = self.replace(**changes)
        for key in ("scale", "shift"):
            value = getattr(full, key)
            if isinstance(value, tuple) and len(value) != full.channels:
                raise UserError(
                    f"codec.{key} has {len(value)} numbers and the latents have {full.channels} channels; give one "
                    "number, or one a channel"
                )
        return full

    def seen(self, pixels: DataInfo) -> DataInfo:
        """Channels and size of what the network sees of pictures; the codec must be resolved.

        Raises:
            UserError: the factor does not divide the size.
        """
        assert self.channels is not None and self.factor is not None, "an unresolved codec"
        height, width = _divided(pixels, self.factor, "the VAE's factor")
        return pixels.replace(channels=self.channels, height=height, width=width)

    def build(self) -> LatentVAE:
        """The loaded VAE.

        Raises:
            UserError: it is not where ``source`` says, or is another one.
        """
        from udit.data.codec import LatentVAE

        return LatentVAE(self)


CodecConfig = Annotated[IdentityCodec | SpaceToDepthCodec | VAECodec, Field(discriminator="kind")]


def codec_from(values: Any) -> IdentityCodec | SpaceToDepthCodec | VAECodec:
    """A codec's config from plain values, or from its kind alone.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    kinds: dict[str, type[IdentityCodec | SpaceToDepthCodec | VAECodec]] = {
        "identity": IdentityCodec,
        "space-to-depth": SpaceToDepthCodec,
        "vae": VAECodec,
    }
    if isinstance(values, IdentityCodec | SpaceToDepthCodec | VAECodec):
        return values
    if not isinstance(values, dict):
        values = {"kind": values}
    kind = values.get("kind", "identity")
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"codec.kind is {kind!r}{nearest(str(kind), kinds)}")
    return parse(kinds[kind], values, where="codec")


def _divided(pixels: DataInfo, factor: int, what: str) -> tuple[int, int]:
    if pixels.height % factor or pixels.width % factor:
        near = [max(factor, round(side / factor) * factor) for side in (pixels.height, pixels.width)]
        raise UserError(
            f"pictures of {pixels.height}x{pixels.width} do not split into squares of {factor} ({what}); take "
            f"{near[0]}x{near[1]}, or another codec"
        )
    return pixels.height // factor, pixels.width // factor


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
        """Pixels a latent, along each axis."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def scale(self) -> float | tuple[float, ...]:
        """Of (z - shift) * scale; a channel's own deviation is divided out where the VAE tells it."""
        return tuple(self.scaling_factor / std for std in self.latents_std) if self.latents_std else self.scaling_factor

    @property
    def shift(self) -> float | tuple[float, ...]:
        """Of (z - shift) * scale."""
        return self.latents_mean or self.shift_factor or 0.0


def read_vae_config(source: str, revision: str | None = None) -> VAEFacts:
    """The ``config.json`` of a VAE's folder or hub id.

    Raises:
        UserError: it cannot be had, or is no AutoencoderKL's.
    """
    folder = Path(source).expanduser()
    path = (folder if folder.is_dir() else vae_folder(source, revision, ("config.json",))) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())[:160]
        raise UserError(f"the VAE's {path} cannot be read ({detail}); give the folder that holds it") from None
    name = values.get("_class_name") if isinstance(values, dict) else None
    if name != "AutoencoderKL":
        raise UserError(f"{path} says _class_name {name!r}; the vae codec takes diffusers' AutoencoderKL")
    return parse(VAEFacts, values, where=str(path))


def vae_folder(source: str, revision: str | None, files: tuple[str, ...] = ("config.json", VAE_WEIGHTS)) -> Path:
    """The folder of a VAE, from the hub where it is none (HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured).

    Raises:
        UserError: there is none.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        detail = str(error).strip().split("\n", 1)[0][:160]
        raise UserError(
            f"the VAE at {source!r} is no folder, and the hub gave none ({detail}); put {' and '.join(files)} into a "
            "folder and give that as codec.source; beside a model, into its folder vae/"
        ) from None


def vae_sha256(folder: Path) -> str:
    """sha256 of the weights of a VAE's folder.

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
    """sha256 of the weights of a VAE of the hub that has been downloaded before; None where it has not."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source, VAE_WEIGHTS)
    return vae_sha256(Path(path).parent) if isinstance(path, str) else None


def other_vae(source: str, wanted: str, found: str) -> str:
    """The message on a VAE that is not the one that was written down."""
    return (
        f"the VAE at {source!r} has weights {found[:12]} and this model's latents came from {wanted[:12]} (sha256); a "
        "decode by another VAE is noise, put the right one there"
    )
