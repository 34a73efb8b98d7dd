"""Weights of other programs as systems, and systems as weights under a release's key names."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from udit.assemble import System
from udit.convert import diffusers
from udit.convert.files import read_file
from udit.convert.states import choose
from udit.data.codec_config import CodecConfig, IdentityCodec, VAECodec
from udit.data.vae import complete
from udit.diffusion.config import DiffusionConfig, SamplingConfig
from udit.errors import RunError, UserError
from udit.files import whole_file
from udit.models.build import build
from udit.models.config import ModelConfig
from udit.models.fixed import Fixed
from udit.models.published import export_published, import_published
from udit.run.system import SystemConfig

SD_VAE = VAECodec(source="stabilityai/sd-vae-ft-ema", channels=4, factor=8, scale=0.18215, shift=0.0)
"""The VAE of the releases on four-channel latents; sd-vae-ft-mse, another decoder of the same latents, is as common."""


def from_published(
    path: Path, config: ModelConfig, *, repair: bool = False, vae: str | None = None, key: str | None = None
) -> tuple[System, str]:
    """A system with a release's weights and the noising process that they were trained with.

    Args:
        path: see ``files.read_file``; a DiT may have the key names of diffusers.
        config: of the network.
        repair: see ``import_published``.
        vae: folder or hub id of the VAE of a model on four-channel latents; ``SD_VAE`` if None.
        key: of the state to take, where the file holds several; the averaged one if None.

    Returns:
        The system, and in words which state of the file it holds and what changed on the way; empty if nothing.

    Raises:
        UserError: see ``states.read_published`` and ``import_published``.
    """
    model = build(config)
    content, note = diffusers.published(read_file(path), config, str(path))
    choice = choose(content, config.published_keys(), untrained=_untrained(model, config), key=key, where=str(path))
    import_published(model, choice.taken.tensors, repair=repair)
    codec: CodecConfig = SD_VAE if config.in_channels == 4 else IdentityCodec()
    if vae is not None:
        if config.in_channels != 4:
            raise UserError(f"a VAE was named and the model takes {config.in_channels} channels, not latents; drop it")
        codec = complete(SD_VAE.replace(source=vae))
    return _system(config, codec, model), "; ".join(filter(None, (str(choice), note)))


def _untrained(model: nn.Module, config: ModelConfig) -> set[str]:
    """The release's keys that no optimiser changes: fixed tables, buffers, layers that are never used."""
    buffers = {name for name, _ in model.named_buffers()}
    rows = config.published_keys().items()
    return {key for key, (name, _) in rows if isinstance(name, Fixed) or name in buffers}


def from_diffusers(folder: Path, *, vae: str | None = None) -> tuple[System, str]:
    """A system from a folder that diffusers has saved: a DiTPipeline, or its DiTTransformer2DModel alone.

    Args:
        folder: with ``model_index.json``, or with the transformer's own ``config.json``.
        vae: folder or hub id of a VAE; the pipeline's own if None, ``SD_VAE`` if it has none.

    Returns:
        The system, and in words what changed on the way.

    Raises:
        UserError: it is no such folder, or holds what the DiT of the paper has not.
    """
    found = diffusers.read_folder(folder)
    model = build(found.config)
    import_published(model, found.state)
    codec: CodecConfig = SD_VAE if found.config.in_channels == 4 else IdentityCodec()
    if source := vae or diffusers.own_vae(folder):
        codec = complete(VAECodec(source=source))
    return _system(found.config, codec, model, found.id2label), found.note


def _system(config: ModelConfig, codec: CodecConfig, model: nn.Module, id2label: tuple[str, ...] = ()) -> System:
    diffusion = native_diffusion(config)
    sampling = SamplingConfig(sampler=diffusion.samplers()[0])
    values = SystemConfig(model=config, diffusion=diffusion, sampling=sampling, codec=codec, id2label=id2label)
    return System(values, model)


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
