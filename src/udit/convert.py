"""Turns weights of other programs into model folders. Only this module opens pickles, and it reads tensors alone."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from udit.assemble import System
from udit.data.codec_config import CodecConfig, IdentityCodec, VAECodec
from udit.data.vae import complete
from udit.diffusion.config import DiffusionConfig, SamplingConfig
from udit.errors import RunError, UserError
from udit.files import whole_file
from udit.models.build import build
from udit.models.config import ModelConfig
from udit.models.published import export_published, import_published
from udit.run.system import SystemConfig
from udit.store import read_tensors


def read_published(path: Path) -> dict[str, Tensor]:
    """The state dict in a release's file; its EMA if there are several.

    Args:
        path: ``.safetensors``, or a ``.pt``/``.pth``/``.ckpt``/``.bin`` pickle, which is read as tensors and plain
            containers only (an ``argparse.Namespace``, which the DiT line stores, is let through); nothing in it runs.

    Raises:
        UserError: no such file, or not a state dict.
    """
    if not path.is_file():
        raise UserError(f"no file {str(path)!r} to convert")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        detail = str(error).split("\n", 1)[0][:160]
        raise UserError(
            f"{path} holds more than tensors and is not opened ({detail}); ask its author for safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        detail = str(error).split("\n", 1)[0][:160]
        raise UserError(f"{path} is no readable torch file ({detail}); download it again") from None
    return _state_dict(content, path)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for name in ("ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state dict, neither itself nor under 'ema', 'model' or 'state_dict'")
    return {str(key): value for key, value in content.items()}


SD_VAE = VAECodec(source="stabilityai/sd-vae-ft-ema", channels=4, factor=8, scale=0.18215, shift=0.0)
"""The VAE of the releases on four-channel latents; sd-vae-ft-mse, another decoder of the same latents, is as common."""


def from_published(path: Path, config: ModelConfig, *, repair: bool = False, vae: str | None = None) -> System:
    """A system with a release's weights and the noising process that they were trained with.

    Args:
        path: see ``read_published``.
        config: of the network.
        repair: see ``import_published``.
        vae: folder or hub id of the VAE of a model on four-channel latents; ``SD_VAE`` if None.

    Raises:
        UserError: see ``read_published`` and ``import_published``.
    """
    model = build(config)
    import_published(model, read_published(path), repair=repair)
    diffusion = native_diffusion(config)
    sampling = SamplingConfig(sampler=diffusion.samplers()[0])
    codec: CodecConfig = SD_VAE if config.in_channels == 4 else IdentityCodec()
    if vae is not None:
        if config.in_channels != 4:
            raise UserError(f"a VAE was named and the model takes {config.in_channels} channels, not latents; drop it")
        codec = complete(SD_VAE.replace(source=vae))
    return System(SystemConfig(model=config, diffusion=diffusion, sampling=sampling, codec=codec), model)


def to_published(system: System, path: Path) -> None:
    """Writes a system's weights as a safetensors file with the release's own key names.

    Raises:
        UserError: the model has no published form.
        RunError: the file cannot be written.
    """
    state = {key: value.contiguous() for key, value in export_published(system.backbone).items()}
    try:
        with whole_file(path) as temporary:
            save_file(state, temporary)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot write {path}: {error}") from None


def native_diffusion(config: ModelConfig) -> DiffusionConfig:
    """The noising process that a release's weights were trained with (``ModelConfig.native_diffusion``)."""
    native: DiffusionConfig = TypeAdapter(DiffusionConfig).validate_python(config.native_diffusion)
    return native
