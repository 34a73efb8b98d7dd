"""Between stored pixels and what the network sees; ``config/codec.py`` says what raw and normalised mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from udit import rng
from udit.data.codec_config import (
    VAE_WEIGHTS,
    CodecConfig,
    IdentityCodec,
    SpaceToDepthCodec,
    VAECodec,
    other_vae,
    read_vae_config,
    vae_folder,
    vae_sha256,
)
from udit.errors import UserError

Keys = Sequence[tuple[int, int]]
"""(seed, place in the run) of each sample."""


class Codec(Protocol):
    """Pixels to raw to normalised, and back to pixels."""

    @property
    def config(self) -> CodecConfig:
        """With all that its files decide."""

    def raw(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> what a latent cache keeps: uint8 pixels, or a posterior's float32 moments."""

    def normalise(self, raw: Tensor, keys: Keys | None = None) -> Tensor:
        """Raw -> float32 for the network, [B, c, h, w].

        Args:
            raw: of ``raw``.
            keys: draw from the posterior by these; None is its mean. A codec without posterior draws nothing.
        """

    def decode(self, x: Tensor) -> Tensor:
        """Floats of the network [B, c, h, w] -> the nearest uint8 [B, C, H, W]."""


def encode(codec: Codec, pixels: Tensor, keys: Keys | None = None) -> Tensor:
    """uint8 pixels [B, C, H, W] to what the network sees."""
    return codec.normalise(codec.raw(pixels), keys)


class Identity:
    """Pixel space: 0..255 and -1..1."""

    config: CodecConfig = IdentityCodec()

    def raw(self, pixels: Tensor) -> Tensor:
        """The pixels."""
        return pixels

    def normalise(self, raw: Tensor, keys: Keys | None = None) -> Tensor:
        """Takes uint8 [B, C, H, W] to float32 in [-1, 1]."""
        return raw.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Takes floats [B, C, H, W] to the nearest uint8; what lies outside [-1, 1] is clamped."""
        return ((x.to(torch.float32) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


class SpaceToDepth:
    """Squares of pixels as channels. Channel c * factor**2 + i * factor + j holds row i, column j of each square."""

    def __init__(self, factor: int) -> None:
        self.config: CodecConfig = SpaceToDepthCodec(factor=factor)
        self.factor = factor

    def raw(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> uint8 [B, C * factor**2, H / factor, W / factor]."""
        return F.pixel_unshuffle(pixels, self.factor)

    def normalise(self, raw: Tensor, keys: Keys | None = None) -> Tensor:
        """Takes uint8 to float32 in [-1, 1]."""
        return Identity().normalise(raw)

    def decode(self, x: Tensor) -> Tensor:
        """Floats [B, C * factor**2, h, w] -> the nearest uint8 [B, C, h * factor, w * factor]."""
        return F.pixel_shuffle(Identity().decode(x), self.factor)


class LatentVAE:
    """diffusers' AutoencoderKL with its normalisation. It follows its input's device."""

    def __init__(self, config: VAECodec) -> None:
        """Loads the VAE.

        Raises:
            UserError: it cannot be had, its weights are damaged or others than the config's, or its latents have
                another shape.
        """
        folder = vae_folder(config.source, config.revision)
        found = vae_sha256(folder)
        if config.sha256 not in (None, found):
            raise UserError(other_vae(config.source, str(config.sha256), found))
        self.facts = read_vae_config(str(folder))
        for key, own in (("channels", self.facts.latent_channels), ("factor", self.facts.factor)):
            if getattr(config, key) != own:
                raise UserError(
                    f"codec.{key} is {getattr(config, key)} and the VAE at {config.source!r} has {own}; leave it out"
                )
        self.config = config.replace(sha256=found)
        self.vae = _load(folder)
        self.vae.use_slicing = config.slicing
        self.vae.use_tiling = config.tiling

    def raw(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> the posterior's mean and log variance, float32 [B, 2 * c, h, w].

        Raises:
            UserError: pictures of other channels than the VAE's, or the VAE overflows on them.
        """
        if pixels.shape[1] != self.facts.in_channels:
            raise UserError(
                f"the pictures have {pixels.shape[1]} channels and the VAE at {self.config.source!r} takes "
                f"{self.facts.in_channels}; change data.channels, or take another VAE"
            )
        with torch.no_grad():
            posterior = self.vae.to(pixels.device).encode(Identity().normalise(pixels)).latent_dist
        moments = torch.cat([posterior.mean, posterior.logvar], dim=1)
        if not bool(torch.isfinite(moments).all()):
            raise UserError(f"the VAE at {self.config.source!r} gives latents that are not finite; take another VAE")
        return moments

    def normalise(self, raw: Tensor, keys: Keys | None = None) -> Tensor:
        """Moments -> (z - shift) * scale, where z is drawn by the keys, or the mean."""
        z, log_variance = raw.to(torch.float32).chunk(2, dim=1)
        if keys is not None and self.config.posterior == "sample":
            noise = torch.stack([rng.normal(z.shape[1:], seed, "posterior", place) for seed, place in keys])
            z = z + (0.5 * log_variance).exp() * noise.to(z.device)
        shift, scale = self._affine(z)
        return (z - shift) * scale

    def decode(self, x: Tensor) -> Tensor:
        """Normalised latents [B, c, h, w] -> uint8 [B, C, H, W]."""
        shift, scale = self._affine(x)
        with torch.no_grad():
            decoded = self.vae.to(x.device).decode(x.to(torch.float32) / scale + shift).sample
        return Identity().decode(decoded)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, each [1, c, 1, 1] or [1, 1, 1, 1]."""
        shift, scale = (
            torch.tensor(value, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)
            for value in (self.config.shift, self.config.scale)
        )
        return shift, scale


def _load(folder: Path) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.utils import logging
    from safetensors import SafetensorError

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is an error below
    try:
        vae, report = AutoencoderKL.from_pretrained(
            str(folder), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"the VAE in {str(folder)!r} cannot be loaded ({detail}); get its config.json and {VAE_WEIGHTS} again"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    odd = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if odd:
        raise UserError(f"the VAE in {str(folder)!r} is damaged: config.json and weights disagree on {odd[0]!r}")
    return vae.eval().requires_grad_(False)
