"""Named protocols: everything that a published score depends on besides the weights; free of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import PositiveInt

from udit.data.codec_config import CodecConfig, VAECodec
from udit.diffusion.config import SamplingConfig
from udit.errors import UserError, nearest
from udit.spec.base import Spec


class Protocol(Spec):
    """How images are generated and scored."""

    num_samples: PositiveInt = 50_000
    sampling: SamplingConfig
    labels: Literal["random", "balanced"]
    """random: uniform, keyed by the image's seed; balanced: all classes in turn."""
    first_seed: int = 0
    batch_size: PositiveInt = 50
    shape: tuple[int, int, int]
    """(C, H, W) of what the network sees."""
    num_classes: PositiveInt
    codec: str
    """The VAE that decodes the images, as a hub id."""
    features: Literal["inception"] = "inception"
    reference: str
    """The published name of the reference file."""


def _adm256(guidance: float, channels: int | None) -> Protocol:
    return Protocol(
        sampling=SamplingConfig(sampler="ddpm", steps=250, guidance=guidance, guidance_channels=channels),
        labels="random",
        shape=(4, 32, 32),
        num_classes=1000,
        codec="stabilityai/sd-vae-ft-ema",
        reference="VIRTUAL_imagenet256_labeled.npz",
    )


PROTOCOLS = {"adm-256": _adm256(1.0, None), "adm-256-cfg1.5": _adm256(1.5, 3)}
"""``adm-256``: 50,000 images of 250 ancestral steps, no guidance. ``adm-256-cfg1.5``: guidance 1.5 of three channels,
as the DiT line publishes it."""


def find_protocol(name: str) -> Protocol:
    """The protocol with a name.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"no protocol {name!r}{nearest(name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def check_model(
    name: str,
    protocol: Protocol,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    codec: CodecConfig,
    cached_sha256: Callable[[str], str | None],
) -> None:
    """Refuses a model that a protocol is not for.

    Two VAEs are compared by the sha256 of their weights where both are known, else by name.

    Args:
        name: of the protocol, for messages.
        protocol: the protocol.
        shape: (C, H, W) of what the model's network sees.
        num_classes: of the model.
        codec: of the model.
        cached_sha256: of the weights of a hub VAE; None where it has not been downloaded (``data.vae.cached_sha256``).

    Raises:
        UserError: another shape, number of classes or codec.
    """
    wanted = "x".join(map(str, protocol.shape))
    if shape != protocol.shape or num_classes != protocol.num_classes:
        raise UserError(
            f"protocol {name} is for models of {wanted} and {protocol.num_classes} classes, and this one has "
            f"{'x'.join(map(str, shape))} and {num_classes}; score it without --protocol"
        )
    source: str = codec.kind
    sha256 = None
    if isinstance(codec, VAECodec):
        source, sha256 = codec.source, codec.sha256 or cached_sha256(codec.source)
    pinned = cached_sha256(protocol.codec)
    by_weights = sha256 is not None and pinned is not None
    if sha256 != pinned if by_weights else source != protocol.codec:
        weights = f" (sha256 {str(sha256)[:12]}, not {str(pinned)[:12]})" if by_weights else ""
        raise UserError(
            f"protocol {name} decodes with {protocol.codec}, and this model's codec is {source}{weights}; score it "
            "without --protocol"
        )
