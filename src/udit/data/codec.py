"""Codecs: images to what the network sees, and back; ``codec_config.py`` says what raw and normalised mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from udit import rng
from udit.data import vae
from udit.data.codec_config import CodecConfig, FieldCodec, IdentityCodec, SpaceToDepthCodec, VAECodec
from udit.data.pixels import to_latents, to_pixels
from udit.errors import UserError

Keys = Sequence[tuple[int, int]]
"""(seed, position in the run) of each image."""


class Codec(Protocol):
    """Pixels to raw to normalised, and back to pixels."""

    @property
    def config(self) -> CodecConfig:
        """Complete: with every number that its files decide."""

    def raw(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> what a latent cache stores: uint8 pixels, or a posterior's moments or latents.

        Here as below, [B, C, F, H, W] are clips, each frame an image.
        """

    def normalise(self, raw: Tensor, keys: Keys | None = None, noise: Tensor | None = None) -> Tensor:
        """Raw -> float32 for the network, [B, c, h, w].

        Args:
            raw: of ``raw``.
            keys: draw from the posterior with these; None takes its mean. A codec without a posterior draws nothing.
            noise: what the keys would draw, of ``posterior_noise``, where it is there already.
        """

    def decode(self, x: Tensor) -> Tensor:
        """Floats of the network [B, c, h, w] -> the nearest uint8 [B, C, H, W]; of fields float32."""

    def image_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the images of which the network sees [c, h, w]."""


def posterior_noise(shape: Sequence[int], keys: Keys) -> Tensor:
    """[B, c, h, w] standard normal, from each image's own key."""
    return torch.stack([rng.normal(shape, seed, "posterior", place) for seed, place in keys])


def encode(codec: Codec, pixels: Tensor, keys: Keys | None = None) -> Tensor:
    """uint8 pixels [B, C, H, W] to what the network sees."""
    return codec.normalise(codec.raw(pixels), keys)


def each_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of images [B, C, H, W], also of the frames of clips [B, C, F, H, W]."""
    if x.ndim == 4:
        return function(x)
    frames = x.shape[2]
    return function(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, frames)).transpose(1, 2)


class Identity:
    """Pixel space: 0..255 and -1..1."""

    config: CodecConfig = IdentityCodec()

    def raw(self, pixels: Tensor) -> Tensor:
        """The pixels."""
        return pixels

    def normalise(self, raw: Tensor, keys: Keys | None = None, noise: Tensor | None = None) -> Tensor:
        """Takes uint8 [B, C, H, W] to float32 in [-1, 1]."""
        return raw.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Takes floats [B, C, H, W] to the nearest uint8; values outside [-1, 1] are clamped."""
        return to_pixels(x)

    def image_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The same."""
        return channels, height, width


class SpaceToDepth:
    """Squares of pixels as channels. Channel c * factor**2 + i * factor + j holds row i, column j of each square."""

    def __init__(self, factor: int) -> None:
        self.config: CodecConfig = SpaceToDepthCodec(factor=factor)
        self.factor = factor

    def raw(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> uint8 [B, C * factor**2, H / factor, W / factor]."""
        return each_frame(lambda x: F.pixel_unshuffle(x, self.factor), pixels)

    def normalise(self, raw: Tensor, keys: Keys | None = None, noise: Tensor | None = None) -> Tensor:
        """Takes uint8 to float32 in [-1, 1]."""
        return Identity().normalise(raw)

    def decode(self, x: Tensor) -> Tensor:
        """Floats [B, C * factor**2, h, w] -> the nearest uint8 [B, C, h * factor, w * factor]."""
        return each_frame(lambda x: F.pixel_shuffle(x, self.factor), Identity().decode(x))

    def image_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """Fewer channels and more pixels, as ``decode``."""
        return channels // self.factor**2, height * self.factor, width * self.factor


class Fields:
    """Fields of numbers, each channel normalised; nothing is rounded or clamped."""

    def __init__(self, config: FieldCodec) -> None:
        self.config: CodecConfig = config
        assert config.mean is not None and config.std is not None, "an incomplete codec"
        self.mean, self.std = (torch.tensor(each).view(-1, 1, 1) for each in (config.mean, config.std))

    def raw(self, pixels: Tensor) -> Tensor:
        """The fields, float [B, C, H, W]."""
        return pixels

    def normalise(self, raw: Tensor, keys: Keys | None = None, noise: Tensor | None = None) -> Tensor:
        """Takes floats to float32 of mean 0 and standard deviation 1."""
        return (raw.to(torch.float32) - self.mean.to(raw.device)) / self.std.to(raw.device)

    def decode(self, x: Tensor) -> Tensor:
        """Takes the network's floats to float32 fields [B, C, H, W]."""
        return x.to(torch.float32) * self.std.to(x.device) + self.mean.to(x.device)

    def image_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The same."""
        return channels, height, width


class LatentVAE:
    """An autoencoder of diffusers with its normalisation. It follows its input's device."""

    def __init__(self, config: VAECodec) -> None:
        """Loads the VAE.

        Raises:
            UserError: it cannot be downloaded, its weights are damaged or not those of the config, or its latents have
                another shape.
        """
        folder = vae.folder_of(config.source, config.revision)
        found = vae.weights_sha256(folder)
        vae.check_sha256(config, found)
        self.facts = vae.read_facts(str(folder))
        for key, given, own in (
            ("channels", config.channels, self.facts.channels),
            ("factor", config.factor, self.facts.factor),
        ):
            if given != own:
                raise UserError(f"codec.{key} is {given} and the VAE at {config.source!r} has {own}; leave it out")
        self.config = config.replace(sha256=found, network=self.facts.network)
        self.vae = _load(folder, self.facts.network)
        self.vae.use_slicing = config.slicing
        self.vae.use_tiling = config.tiling
        self._affines: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def raw(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> the posterior's mean and log variance, float32 [B, 2 * c, h, w].

        Without a posterior, the latents [B, c, h, w].

        Raises:
            UserError: the images do not have the VAE's number of channels, or the VAE overflows on them.
        """
        if pixels.shape[1] != self.facts.in_channels:
            raise UserError(
                f"the images have {pixels.shape[1]} channels and the VAE at {self.config.source!r} takes "
                f"{self.facts.in_channels}; change data.channels, or take another VAE"
            )
        return each_frame(self._raw, pixels)

    def _raw(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            (encoded,) = self.vae.to(pixels.device).encode(Identity().normalise(pixels), return_dict=False)
        parts = [encoded.mean, encoded.logvar] if self.config.has_posterior else [encoded]
        raw = torch.cat([F.pixel_unshuffle(part, self.facts.patch) for part in parts], dim=1)
        if not bool(torch.isfinite(raw).all()):
            raise UserError(f"the VAE at {self.config.source!r} gives latents that are not finite; take another VAE")
        return raw

    def normalise(self, raw: Tensor, keys: Keys | None = None, noise: Tensor | None = None) -> Tensor:
        """Raw latents -> (z - shift) * scale, where z is drawn from the posterior with the keys, or is its mean."""
        z = raw.to(torch.float32)
        if self.config.has_posterior:
            z, log_variance = z.chunk(2, dim=1)
            if self.config.posterior == "sample" and (keys is not None or noise is not None):
                noise = posterior_noise(z.shape[1:], keys or ()) if noise is None else noise
                z = z + (0.5 * log_variance).exp() * noise.to(z.device)
        shift, scale = self._affine(z)
        return (z - shift) * scale

    def decode(self, x: Tensor) -> Tensor:
        """Normalised latents [B, c, h, w] -> uint8 [B, C, H, W]."""
        return each_frame(self._decode, x)

    def _decode(self, x: Tensor) -> Tensor:
        assert self.config.shift is not None and self.config.scale is not None, "an incomplete codec"
        z = to_latents(x, self.config.shift, self.config.scale, self.facts.patch)
        with torch.no_grad():
            (decoded,) = self.vae.to(x.device).decode(z, return_dict=False)
        return Identity().decode(decoded)

    def image_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """The VAE's channels, and its pixels for each latent."""
        return self.facts.in_channels, height * self.facts.factor, width * self.facts.factor

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, each [1, c, 1, 1] or [1, 1, 1, 1]; with an axis more for clips."""
        found = self._affines.get(like.device)
        if found is None:
            shift, scale = (
                torch.tensor(value, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)
                for value in (self.config.shift, self.config.scale)
            )
            found = self._affines[like.device] = shift, scale
        shift, scale = (part.view(1, -1, *[1] * (like.ndim - 2)) for part in found)
        return shift, scale


def _load(folder: Path, network: str) -> Any:
    import diffusers
    from diffusers.utils import logging
    from safetensors import SafetensorError

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # everything it would warn about is an error below
    try:
        vae_class = getattr(diffusers, network)
        loaded, report = vae_class.from_pretrained(
            str(folder), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"the VAE in {str(folder)!r} cannot be loaded ({detail}); get its {' and '.join(vae.VAE_FILES)} again"
        ) from None
    except AttributeError:
        raise UserError(f"this diffusers has no {network}; install a newer one: pip install -U diffusers") from None
    finally:
        logging.set_verbosity(verbosity)
    odd = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if odd:
        raise UserError(f"the VAE in {str(folder)!r} is damaged: config.json and weights disagree on {odd[0]!r}")
    return loaded.eval().requires_grad_(False)
