"""The pipeline that ``udit export diffusers`` writes; ``bundle`` puts all that it needs into one file with it."""

# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call, assignment, attr-defined, type-var, override"
from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from udit.data.pixels import Affine, to_latents, to_pixels
from udit.diffusion.combine import rule_of
from udit.diffusion.config import DDPMConfig, ProcessConfig
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import SeededNoise, make_sampler
from udit.diffusion.settings import SamplingConfig
from udit.errors import UserError
from udit.models.config import ModelConfig
from udit.rng import seeds_of
from udit.run.classes import Classes

MODEL: ModelConfig = ModelConfig(family="written by the exporter")
"""The network; its weights are fused."""
PROCESS: ProcessConfig = DDPMConfig()
"""The noising process that it was trained on."""
SAMPLING: SamplingConfig = SamplingConfig()
"""How images are drawn where a call does not say otherwise."""
SQUARE: int = 1
"""Side of the squares of pixels that are channels of the network."""
LATENT_SHIFT: Affine = 0.0
LATENT_SCALE: Affine = 1.0
"""The network generates (z - LATENT_SHIFT) * LATENT_SCALE of a VAE's latents z, where it has a VAE."""
LATENT_SQUARE: int = 1
"""Side of the squares of latents that are channels of the network."""
SOURCE = b""
"""This file as it was when it was loaded (``own_module``)."""


class UditNetwork(ModelMixin, ConfigMixin):
    """The network as a component of diffusers, which loads ``transformer/diffusion_pytorch_model.safetensors``."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.network = MODEL.build()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in the network's own unit, y [B] labels or None -> [B, C_out, H, W], in x's type."""
        return self.network(x.to(self.dtype), t, y).to(x.dtype)


class UditPipeline(DiffusionPipeline):
    """Draws images from noise, each from a seed of its own: a seed and a label give the same image in any batch."""

    model_cpu_offload_seq = "transformer->vae"
    _optional_components: ClassVar[list[str]] = ["vae"]

    def __init__(
        self, transformer: Any, scheduler: Any, vae: Any = None, id2label: Mapping[str, str] | None = None
    ) -> None:
        """Called by ``DiffusionPipeline.from_pretrained``.

        Args:
            transformer: the network.
            scheduler: describes the noising process to other programs; this pipeline has its own samplers.
            vae: decodes latents, where the network generates latents.
            id2label: class names by class number.
        """
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(id2label=dict(id2label or {}))

    @property
    def classes(self) -> Classes:
        """Names and numbers of the classes."""
        names = self.config.id2label
        return Classes(MODEL.num_classes, tuple(names[str(i)] for i in range(len(names))), MODEL.null_label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: str | Sequence[int | str] | None = None,
        seeds: Sequence[int] | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        clip: bool | None = None,
        batch_size: int = 64,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draws images.

        Args:
            class_labels: class names or numbers, as a list or as a text like ``"cat,dog"``, repeated in turn over the
                seeds; all classes in turn if None.
            seeds: one for each image; 0, 1, 2 and so on if None, one for each label or four.
            num_inference_steps: network evaluations of an image.
            guidance_scale: w of u + w (c - u), of the prediction c for the class and u for none; 1 is no guidance.
            guidance_interval: times between which guidance acts, from 0 (data) to 1 (noise).
            guidance_channels: guides only the first so many channels.
            sampler: a name of ``SAMPLERS``.
            eta: fraction of fresh noise (ddim).
            clip: clamps predicted images to their range at every step (ddpm and ddim).
            batch_size: images that are drawn together.
            output_type: pil, np (float32 [N, H, W, C] from 0 to 1) or pt (uint8 [N, C, H, W]).
            return_dict: returns an object with ``images`` in place of a tuple.

        Returns:
            The images, one for each seed. What is None is as the model was exported.

        Raises:
            UserError: labels, seeds or a setting that do not fit the model.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type is {output_type!r}; choose pil, np or pt")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it counts images, at least 1")
        wanted = list(range(self.classes.trained)) if class_labels is None else self.classes.labels(class_labels)
        given_seeds = range(4 if class_labels is None else len(wanted)) if seeds is None else seeds
        chosen: list[Any] = seeds_of(given_seeds)
        if class_labels is not None and len(wanted) > len(chosen):
            raise UserError(f"class_labels are {len(wanted)} and seeds {len(chosen)}; give a seed for each label")
        labels = [wanted[i % len(wanted)] for i in range(len(chosen))] if wanted else None
        given = {
            "steps": num_inference_steps,
            "guidance": guidance_scale,
            "guidance_interval": guidance_interval,
            "guidance_channels": guidance_channels,
            "sampler": sampler,
            "eta": eta,
            "clip": clip,
        }
        settings = replace(SAMPLING, **{key: value for key, value in given.items() if value is not None})
        if guidance_interval is not None:
            settings = replace(settings, guidance_levels=None)
        images = [
            self._draw(chosen[start : start + batch_size], labels and labels[start : start + batch_size], settings)
            for start in range(0, len(chosen), batch_size)
        ]
        self.maybe_free_model_hooks()
        made = self._as(output_type, torch.cat(images))
        return ImagePipelineOutput(images=made) if return_dict else (made,)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Saves as diffusers does, and with it this file, which diffusers (0.42) leaves out.

        Args:
            save_directory: the folder.
            options: of ``DiffusionPipeline.save_pretrained``.
        """
        super().save_pretrained(save_directory, **options)
        index = Path(save_directory) / "model_index.json"
        values = json.loads(index.read_text(encoding="utf-8"))
        values |= {"_class_name": ["pipeline", "UditPipeline"], "transformer": ["diffusers", "UditNetwork"]}
        index.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (index.parent / "pipeline.py").write_bytes(SOURCE)

    def denoiser(self, settings: SamplingConfig) -> Denoiser | Guided:
        """The network on its noising process, for one run of sampling guided as the settings say."""
        schedule = PROCESS.build()
        backbone, time = schedule.precondition(self.transformer, MODEL.time)
        denoiser = Denoiser(
            backbone=backbone,
            schedule=schedule,
            target=schedule.target,
            learn_sigma=MODEL.learn_sigma,
            time=time,
            null_label=MODEL.null_label,
            num_classes=MODEL.num_classes,
            reversed_flow=MODEL.reversed_flow,
        )
        if settings.guidance == 1:
            return denoiser
        channels = settings.guidance_channels
        if (channels or 0) > MODEL.in_channels:
            raise UserError(f"guidance_channels is {channels} and the model predicts {MODEL.in_channels}")
        low, high = settings.guidance_interval
        guided = Guided(
            denoiser,
            settings.guidance,
            (low, high),
            channels,
            rule=rule_of(settings),
            rescale=settings.guidance_rescale,
            levels=settings.guidance_levels,
            zero_init=settings.zero_init,
        )
        return guided.begun()

    def _draw(self, seeds: Sequence[int], labels: Sequence[int] | None, settings: SamplingConfig) -> Tensor:
        """One batch, uint8 [B, C, H, W] on the CPU."""
        device = self._execution_device
        denoiser = self.denoiser(settings)
        sampler = make_sampler(settings.sampler, eta=settings.eta, clip=settings.clip)
        noise = SeededNoise(seeds, (MODEL.in_channels, *MODEL.size), device)
        y = None if labels is None else torch.tensor(labels, device=device)
        x = noise(0)
        with self.progress_bar(total=settings.steps) as bar:
            for step in sampler(denoiser, x, settings.steps, y, noise):
                x = step.x
                bar.update()
        return self._decoded(x.float()).cpu()

    def _decoded(self, x: Tensor) -> Tensor:
        """What the network generates [B, c, h, w] -> uint8 pixels [B, C, H, W]."""
        if self.vae is not None:
            latents = to_latents(x, LATENT_SHIFT, LATENT_SCALE, LATENT_SQUARE)
            (x,) = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)
        return F.pixel_shuffle(to_pixels(x), SQUARE)

    def _as(self, output_type: str, images: Tensor) -> Any:
        """uint8 [N, C, H, W] in the form that is asked for."""
        if output_type == "pt":
            return images
        pixels = images.permute(0, 2, 3, 1).float().numpy() / 255
        return pixels if output_type == "np" else self.numpy_to_pil(pixels)


def own_module() -> Any:
    """This file as a module of its own.

    diffusers (0.42) runs the pipeline.py of every local folder in one and the same module, where the names of a second
    folder take the place of those that a pipeline of the first one still uses.
    """
    path = Path(__file__)
    source = path.read_bytes()
    name = f"udit_pipeline_{hashlib.sha256(source).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        module.SOURCE = source  # the file is another one once diffusers has loaded a second folder
    return sys.modules[name]


if not __name__.startswith(("udit_pipeline_", "udit.")):
    UditPipeline = own_module().UditPipeline
    # from_pretrained loads components by class from libraries that it knows, or from further files of code
    diffusers.UditNetwork = own_module().UditNetwork
