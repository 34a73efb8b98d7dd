"""Configs of codecs, which convert images to what the network sees and back; free of torch.

A codec's output before any scaling is *raw*: uint8 pixels, the mean and log variance of a VAE's posterior, or latents
without one. What the network sees is *normalised*: pixels in [-1, 1], or (z - shift) * scale, where shift and scale are
the codec config's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from udit.data.config import DataInfo
from udit.errors import UserError
from udit.spec.base import Spec, parse_kind
from udit.spec.digest import Sha256

if TYPE_CHECKING:
    from udit.data.codec import Fields, Identity, LatentVAE, SpaceToDepth


class IdentityCodec(Spec):
    """Pixel space: 0..255 becomes -1..1."""

    kind: Literal["identity"] = "identity"

    def seen(self, pixels: DataInfo) -> DataInfo:
        """Channels and size of what the network sees of an image."""
        return pixels

    def build(self) -> Identity:
        """The codec."""
        from udit.data.codec import Identity

        return Identity()


class SpaceToDepthCodec(Spec):
    """Squares of factor x factor pixels become channels: 1x32x32 is 4x16x16 at factor 2. Lossless."""

    kind: Literal["space-to-depth"] = "space-to-depth"
    factor: Annotated[int, Field(ge=2, le=64)] = 2
    """Side of the squares; the network's cost is divided by its square."""

    def seen(self, pixels: DataInfo) -> DataInfo:
        """Channels and size of what the network sees of an image.

        Raises:
            UserError: the factor does not divide the size.
        """
        height, width = _divided(pixels, self.factor, "codec.factor")
        return pixels.replace(channels=pixels.channels * self.factor**2, height=height, width=width)

    def build(self) -> SpaceToDepth:
        """The codec."""
        from udit.data.codec import SpaceToDepth

        return SpaceToDepth(self.factor)


class FieldCodec(Spec):
    """Numbers of any size: the network sees (x - mean) / std, each channel by itself. Of fields alone."""

    kind: Literal["field"] = "field"
    mean: tuple[float, ...] | None = None
    """One number per channel; those of the training data where they are left out."""
    std: tuple[PositiveFloat, ...] | None = None
    """One number per channel; those of the training data where they are left out."""

    def seen(self, pixels: DataInfo) -> DataInfo:
        """Channels and size of what the network sees of a field.

        Raises:
            UserError: the normalisation has another number of channels.
        """
        for key in ("mean", "std"):
            values = getattr(self, key)
            if values is not None and len(values) != pixels.channels:
                raise UserError(
                    f"codec.{key} has {len(values)} numbers and the fields have {pixels.channels} channels; leave it "
                    "out"
                )
        return pixels

    def build(self) -> Fields:
        """The codec."""
        from udit.data.codec import Fields

        return Fields(self)


class VAECodec(Spec):
    """An autoencoder of diffusers; the network sees (z - shift) * scale of its latents z.

    Numbers that are left out are those of the autoencoder's own files; resolving a run fills them in. Those of FLUX.2
    are of its latents' 2x2 patches, each a pixel of four times as many channels.
    """

    kind: Literal["vae"] = "vae"
    source: str
    """A folder with config.json and diffusion_pytorch_model.safetensors, or a hub id."""
    network: Literal["AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderDC", "AutoencoderTiny"] = "AutoencoderKL"
    """diffusers' class, as its config.json names it; filled in like the numbers."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    channels: PositiveInt | None = None
    """Of the latents."""
    factor: PositiveInt | None = None
    """Pixels per latent along each axis."""
    scale: PositiveFloat | tuple[PositiveFloat, ...] | None = None
    """One number, or one per channel."""
    shift: float | tuple[float, ...] | None = None
    """One number, or one per channel; subtracted before scaling."""
    posterior: Literal["sample", "mode"] = "sample"
    """What training sees: a draw from the posterior, keyed by (seed, position in the run), or its mean. Everything else
    sees the mean. AutoencoderDC and AutoencoderTiny have no posterior: their latents are a function of the image."""
    slicing: bool = True
    """Encodes and decodes one image at a time: least memory, and bits that do not depend on the batch. Off is faster on
    a GPU."""
    tiling: bool = False
    """Encodes and decodes large images in overlapping tiles: less memory, slightly different values."""
    sha256: Sha256 | None = None
    """Of diffusion_pytorch_model.safetensors, as ``sha256sum`` prints it; a different file is refused."""

    @property
    def has_posterior(self) -> bool:
        """Whether an image's latents are a distribution, of which raw latents hold mean and log variance."""
        return self.network in ("AutoencoderKL", "AutoencoderKLFlux2")

    def seen(self, pixels: DataInfo) -> DataInfo:
        """Channels and size of what the network sees of an image; the codec must be complete (``data.vae.complete``).

        Raises:
            UserError: the factor does not divide the size.
        """
        assert self.channels is not None and self.factor is not None, "an incomplete codec"
        height, width = _divided(pixels, self.factor, "the VAE's factor")
        return pixels.replace(channels=self.channels, height=height, width=width)

    def build(self) -> LatentVAE:
        """The loaded VAE.

        Raises:
            UserError: it is not where ``source`` says, or its weights are not those of ``sha256``.
        """
        from udit.data.codec import LatentVAE

        return LatentVAE(self)


CodecConfig = Annotated[IdentityCodec | SpaceToDepthCodec | FieldCodec | VAECodec, Field(discriminator="kind")]


def codec_from(values: Any) -> CodecConfig:
    """A codec's config from plain values, or from its kind alone.

    Raises:
        UserError: an unknown kind or key, or a value out of range.
    """
    if isinstance(values, Spec):
        return parse_kind(CodecConfig, values, where="codec")
    if not isinstance(values, dict):
        values = {"kind": values}
    return parse_kind(CodecConfig, {"kind": "identity", **values}, where="codec")


AnyCodec = Annotated[CodecConfig, BeforeValidator(codec_from)]
"""A codec's config, also from plain values or from its kind alone."""


def _divided(pixels: DataInfo, factor: int, what: str) -> tuple[int, int]:
    if pixels.height % factor or pixels.width % factor:
        near = [max(factor, round(side / factor) * factor) for side in (pixels.height, pixels.width)]
        raise UserError(
            f"images of {pixels.height}x{pixels.width} do not split into squares of {factor} ({what}); take "
            f"{near[0]}x{near[1]}, or another codec"
        )
    return pixels.height // factor, pixels.width // factor
