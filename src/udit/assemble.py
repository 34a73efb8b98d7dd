"""Where the towers meet: a network, a schedule, a target and a codec become a system that draws pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from udit.data.codec import Codec
from udit.diffusion.cache import StepCache
from udit.diffusion.conditions import prepared
from udit.diffusion.config import DiffusionConfig, EDMConfig, FlowConfig, SamplingConfig
from udit.diffusion.denoise import Denoiser, Target
from udit.diffusion.edm import Preconditioned, WeightedLoss
from udit.diffusion.guidance import Guided
from udit.diffusion.objective import Loss, flow_loss, hybrid_loss
from udit.diffusion.sample import SeededNoise, make_sampler, sample
from udit.errors import UserError, nearest
from udit.models.build import fuse
from udit.models.config import ModelConfig
from udit.run.system import SystemConfig


def denoiser_of(config: SystemConfig, backbone: Any) -> Denoiser:
    """The denoiser of a network, or of anything called like one (DDP, a compiled module)."""
    model, diffusion = config.model, config.diffusion
    target: Target = "eps"
    if isinstance(diffusion, FlowConfig):
        target = "flow" if diffusion.path == "linear" else "gvp"
    if edm := isinstance(diffusion, EDMConfig):
        target, backbone = "x0", Preconditioned(backbone, diffusion.sigma_data, time=model.time)
    return Denoiser(
        backbone=backbone,
        schedule=diffusion.build(),
        target=target,
        learn_sigma=model.learn_sigma,
        time="sigma" if edm else model.time,
        null_label=model.null_label,
        num_classes=model.num_classes,
        reversed_flow=model.reversed_flow,
    )


def loss_of(diffusion: DiffusionConfig) -> Loss:
    """What training minimises: the hybrid loss, flow matching, or EDM's weighted error."""
    if isinstance(diffusion, EDMConfig):
        return WeightedLoss(diffusion.sigma_data, diffusion.weighting)
    return flow_loss if isinstance(diffusion, FlowConfig) else hybrid_loss


def step_cache(model: ModelConfig, how: SamplingConfig) -> StepCache | None:
    """Step caching in the network's own units of time; None where all steps run in full.

    Raises:
        UserError: steps are counted from the end, and the network's time runs the other way.
    """
    if how.refresh:
        return StepCache(refresh=how.refresh, forecast=how.forecast, guidance=how.keep_guidance)
    if how.cache == 1:
        return None
    if model.reversed_flow:
        raise UserError(
            f"cache is {how.cache} and {model.family} walks a reversed flow, whose end it does not know; set it to 1"
        )
    final_time = {"index": 20.0, "unit": 0.02, "sigma": 0.02 / 0.98}[model.time]
    return StepCache(how.cache, final_time, forecast=how.forecast, guidance=how.keep_guidance)


@dataclass(frozen=True)
class System:
    """A network with everything that sampling from it takes."""

    config: SystemConfig
    backbone: nn.Module
    loaded_codec: Codec | None = field(default=None, repr=False, compare=False)
    """Its codec where that has been loaded already, as a VAE by the training."""

    @property
    def denoiser(self) -> Denoiser:
        """The network as a denoiser."""
        return denoiser_of(self.config, self.backbone)

    @cached_property
    def codec(self) -> Codec:
        """Between pixels and the model's data; a VAE is loaded when first asked for.

        Raises:
            UserError: the VAE is not there, or is another one.
        """
        return self.loaded_codec or self.config.codec.build()

    def fused(self) -> System:
        """The same with the network's inference form."""
        backbone = fuse(self.backbone)
        config = self.config.model_copy(update={"model": backbone.config})
        return dataclasses.replace(self, config=config, backbone=backbone)

    def to(self, device: torch.device | str) -> System:
        """Moves the network (in place, as ``nn.Module.to``) and returns the system."""
        self.backbone.to(device)
        return self

    def labels(self, wanted: Sequence[int | str]) -> list[int]:
        """Class names or numbers as labels.

        Raises:
            UserError: an unknown name, a number out of range, or any for an unconditional model.
        """
        count, names = self.config.model.num_classes, self.config.id2label
        if not count:
            raise UserError("labels were given to an unconditional model (num_classes 0); leave them out")
        labels = []
        for word in wanted:
            text = str(word).strip()
            if text in names:
                labels.append(names.index(text))
            elif text.lstrip("-").isdigit():
                if not 0 <= int(text) < count:
                    raise UserError(f"label {text} is out of range; the model knows 0 to {count - 1}")
                labels.append(int(text))
            else:
                raise UserError(f"no class {text!r}{nearest(text, names)}")
        return labels

    def guided(self, how: SamplingConfig, null: Tensor | None = None) -> Denoiser | Guided:
        """The denoiser, guided as a setting says; ``null`` as in ``generate``.

        Raises:
            UserError: guidance without a null label, or of channels that are not.
        """
        if (how.guidance_channels or 0) > self.config.model.in_channels:
            raise UserError(
                f"guidance_channels is {how.guidance_channels} and the model predicts {self.config.model.in_channels}; "
                "leave it out to guide all"
            )
        if how.guidance == 1:
            return self.denoiser
        return Guided(self.denoiser, how.guidance, how.guidance_interval, how.guidance_channels, null)

    def generate(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None = None,
        *,
        context: Tensor | None = None,
        null: Tensor | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int = 64,
        on_step: Callable[[int], object] | None = None,
    ) -> Iterator[Tensor]:
        """Draws one picture a seed; a seed and label give the same picture in any batch.

        Args:
            seeds: one a picture.
            labels: one a picture, or None (an unconditional model, or the null class).
            context: float [N, ...], one condition a picture, for a model that takes vectors (``condition_shape``).
            null: one such condition that says nothing, e.g. an empty text's; guidance compares with it.
            sampling: how; the model's own setting if None.
            batch_size: pictures at a time.
            on_step: called with the number of pictures that have just advanced one step.

        Yields:
            uint8 [b, C, H, W], batch after batch.

        Raises:
            UserError: the sampler does not fit the model, guidance without a null label or of channels that are not, or
                a context that the model does not take, or lacks.
        """
        self._check_context(context, null, len(seeds))
        how = sampling or self.config.sampling
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))  # an exported graph has none
        denoise = self.guided(how, null)
        codec = self.codec  # one that is not there is told before the first step
        cache = step_cache(self.config.model, how)
        sampler = make_sampler(how.sampler, eta=how.eta, clip=how.clip)
        if context is None:  # whose rows are every picture's own
            denoise = prepared(denoise, sampler, how.steps, labels, device)
        shape = (self.config.model.in_channels, *self.config.model.size)
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            for start in range(0, len(seeds), batch_size):
                part = seeds[start : start + batch_size]
                noise = SeededNoise(part, shape, device)
                y = None if labels is None else torch.tensor(labels[start : start + batch_size], device=device)
                y = y if context is None else context[start : start + batch_size].to(device)
                x = noise(0)
                for step in sample(denoise, x, scheduler=sampler, steps=how.steps, y=y, noise=noise, cache=cache):
                    x = step.x
                    if on_step:
                        on_step(len(part))
                yield codec.decode(x.float()).cpu()
        finally:
            self.backbone.train(was_training)

    def _check_context(self, context: Tensor | None, null: Tensor | None, pictures: int) -> None:
        shape = self.config.model.condition_shape
        if not shape:
            if context is not None or null is not None:
                raise UserError("context was given to a model that takes no vectors; leave it out")
        elif context is None:
            raise UserError(
                f"the model takes vectors of {list(shape)} a picture and has none; pass context, or --context FILE to "
                "`udit sample`"
            )
        elif list(context.shape) != [pictures, *shape]:
            raise UserError(
                f"context is {list(context.shape)} and the model takes {[pictures, *shape]} for {pictures} pictures"
            )
