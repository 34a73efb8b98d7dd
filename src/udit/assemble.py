"""Where the towers meet: a network, a noising process and a codec become a system that draws images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from udit import rng
from udit.data.codec import Codec
from udit.diffusion.cache import StepCache
from udit.diffusion.conditions import prepared
from udit.diffusion.config import SamplingConfig
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.guidance import AnyDenoiser, Guided
from udit.diffusion.objective import Objective
from udit.diffusion.sample import SeededNoise, make_sampler, sample
from udit.errors import UserError
from udit.models.build import fuse
from udit.models.config import ModelConfig
from udit.run.config import Run
from udit.run.system import SystemConfig


def denoiser_of(config: SystemConfig, backbone: Any) -> Denoiser:
    """The denoiser of a network, or of anything called like one (DDP, a compiled module)."""
    model, schedule = config.model, config.diffusion.build()
    backbone, time = schedule.precondition(backbone, model.time)
    return Denoiser(
        backbone=backbone,
        schedule=schedule,
        target=schedule.target,
        learn_sigma=model.learn_sigma,
        time=time,
        null_label=model.null_label,
        num_classes=model.num_classes,
        reversed_flow=model.reversed_flow,
    )


def objective_of(run: Run) -> Objective:
    """The training loss of a run."""
    training = run.training
    levels = (run.model.label_levels or 1) if training.independent_level_dropout else 1
    return Objective(run.seed, training.label_dropout, levels, training.precision)


def step_cache(model: ModelConfig, sampling: SamplingConfig) -> StepCache | None:
    """Step caching in the network's own units of time; None where all steps run in full.

    Raises:
        UserError: every N-th step is cached, which needs a network whose time falls to 0 at the data.
    """
    if sampling.refresh:
        return StepCache(refresh=sampling.refresh, forecast=sampling.forecast, guidance=sampling.keep_guidance)
    if sampling.cache == 1:
        return None
    if model.reversed_flow:
        raise UserError(
            f"cache is {sampling.cache} and {model.family} counts time from noise to data (reversed flow), so that its "
            "last steps cannot be recognised by a time near 0; set cache to 1, or name evaluations in refresh"
        )
    final_time = {"index": 20.0, "unit": 0.02, "sigma": 0.02 / 0.98}[model.time]
    return StepCache(sampling.cache, final_time, forecast=sampling.forecast, guidance=sampling.keep_guidance)


@runtime_checkable
class Fingerprinted(Protocol):
    """A backbone that holds no weights itself and knows the fingerprint of those it was made of: an exported graph."""

    fingerprint: str


def fingerprint(model: nn.Module) -> str:
    """First 16 hex digits of a sha256 over all weights, by name; of an exported graph, that of its model's weights."""
    if isinstance(model, Fingerprinted):
        return model.fingerprint
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class System:
    """A network with everything that sampling from it takes.

    One evaluation passes up to six wrappers. From the network outwards, and where each is applied:

    1. ``PrecomputedConditions`` looks up what depends on time and label alone: ``generate``, once per call.
    2. ``StepCache.attach`` reuses the deep part's output: ``sample``, once per batch.
    3. ``Preconditioned``, of EDM alone, scales the network's input and output: ``denoiser_of``.
    4. ``Denoiser`` converts the time and turns the output into (x0, eps): ``denoiser_of``.
    5. ``Guided`` combines the conditional and the null prediction: ``guided``; with ``keep_guidance`` it is
       ``CachedGuidance``, of the same step cache: ``sample``, once per batch.
    6. ``respaced``, of ddpm and ddim, takes a part of the schedule's steps: the sampler, on all of the above.
    """

    config: SystemConfig
    backbone: nn.Module
    loaded_codec: Codec | None = field(default=None, repr=False, compare=False)
    """The codec, where it has been loaded already, e.g. a VAE by training."""
    fused_from: str | None = field(default=None, repr=False, compare=False)
    """Fingerprint of the weights that ``fused`` folded into those of ``backbone``."""

    @property
    def denoiser(self) -> Denoiser:
        """The network as a denoiser."""
        return denoiser_of(self.config, self.backbone)

    @cached_property
    def codec(self) -> Codec:
        """Converts between pixels and the model's data; a VAE is loaded when first used.

        Raises:
            UserError: the VAE is missing, or is another one.
        """
        return self.loaded_codec or self.config.codec.build()

    @property
    def num_parameters(self) -> int:
        """Number of weights of the network."""
        return sum(p.numel() for p in self.backbone.parameters())

    @property
    def fingerprint(self) -> str:
        """Of the weights before they were fused: folding rounds, and on each processor in its own way."""
        return self.fused_from or fingerprint(self.backbone)

    def has_weights(self, recorded: str) -> bool:
        """Whether a file that records this fingerprint was made of these weights.

        Older files record that of the fused weights, which only a processor that rounds alike finds again.
        """
        if recorded == self.fingerprint or isinstance(self.backbone, Fingerprinted):
            return recorded == self.fingerprint
        return recorded == fingerprint(fuse(self.backbone))

    def fused(self) -> System:
        """The same with the fused network (``udit.fuse``)."""
        backbone = fuse(self.backbone)
        config = self.config.model_copy(update={"model": backbone.config})
        return dataclasses.replace(self, config=config, backbone=backbone, fused_from=self.fingerprint)

    def to(self, device: torch.device | str) -> System:
        """Moves the network (in place, as ``nn.Module.to``) and returns the system."""
        self.backbone.to(device)
        return self

    def labels(self, wanted: str | Sequence[int | str]) -> list[int]:
        """Class names or numbers as labels; see ``Classes.labels``.

        Raises:
            UserError: an unknown name, a number out of range, or any for an unconditional model.
        """
        return self.config.classes.labels(wanted)

    def guided(self, sampling: SamplingConfig, null: Tensor | None = None) -> AnyDenoiser:
        """The denoiser, guided as a setting says; ``null`` as in ``generate``.

        Raises:
            UserError: guidance without a null label, or of more channels than the model predicts.
        """
        if (sampling.guidance_channels or 0) > self.config.model.in_channels:
            raise UserError(
                f"guidance_channels is {sampling.guidance_channels} and the model predicts "
                f"{self.config.model.in_channels}; leave it out to guide all"
            )
        if sampling.guidance == 1:
            return self.denoiser
        return Guided(
            self.denoiser, sampling.guidance, sampling.guidance_interval, sampling.guidance_channels, null=null
        )

    def generate(
        self,
        seeds: Sequence[int],
        labels: str | Sequence[int | str] | None = None,
        *,
        context: Tensor | None = None,
        null: Tensor | None = None,
        sampling: SamplingConfig | None = None,
        batch_size: int = 64,
        on_step: Callable[[int], object] | None = None,
    ) -> Iterator[Tensor]:
        """Draws one image per seed; a seed and label give the same image in any batch.

        Args:
            seeds: one per image.
            labels: one per image, class numbers or names (see ``Classes.labels``); None for an unconditional model, or
                for images of no class.
            context: float [N, ...], one condition per image, for a model that takes vectors (``condition_shape``).
            null: the null condition of such a model, e.g. of the empty text; guidance compares with it.
            sampling: sampler, steps, guidance and cache; the model's own setting if None.
            batch_size: images at a time.
            on_step: called after every step with the number of images in the batch.

        Returns:
            uint8 [b, C, H, W], batch after batch, sampled when they are iterated over.

        Raises:
            UserError: the sampler does not fit the model, guidance without a null label or of too many channels, labels
                that the model does not know or that are not one per seed, or a context that the model does not take, or
                lacks.
        """
        seeds = rng.seeds_of(seeds)
        chosen = None if labels is None else self.labels(labels)
        if chosen is not None and len(chosen) != len(seeds):
            raise UserError(f"labels are {len(chosen)} and seeds {len(seeds)}; give one label for each seed")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it counts images, at least 1")
        self._check_context(context, null, len(seeds))
        return self._batches(seeds, chosen, context, null, sampling or self.config.sampling, batch_size, on_step)

    def _batches(
        self,
        seeds: list[int],
        labels: list[int] | None,
        context: Tensor | None,
        null: Tensor | None,
        sampling: SamplingConfig,
        batch_size: int,
        on_step: Callable[[int], object] | None,
    ) -> Iterator[Tensor]:
        """As ``generate``, which has checked the arguments."""
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))  # an exported graph has none
        denoiser = self.guided(sampling, null)
        codec = self.codec  # before the first step, so that a missing VAE is an error at once
        cache = step_cache(self.config.model, sampling)
        sampler = make_sampler(sampling.sampler, eta=sampling.eta, clip=sampling.clip)
        if context is None:  # of which every image has its own
            denoiser = prepared(denoiser, sampler, sampling.steps, labels, device)
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
                for step in sample(denoiser, x, sampler=sampler, steps=sampling.steps, y=y, noise=noise, cache=cache):
                    x = step.x
                    if on_step:
                        on_step(len(part))
                yield codec.decode(x.float()).cpu()
        finally:
            self.backbone.train(was_training)

    def _check_context(self, context: Tensor | None, null: Tensor | None, count: int) -> None:
        shape = self.config.model.condition_shape
        if not shape:
            if context is not None or null is not None:
                raise UserError("context was given to a model that takes no vectors; leave it out")
        elif context is None:
            raise UserError(
                f"the model takes vectors of {list(shape)} per image and was given none; pass context, or "
                "--context FILE to `udit sample`"
            )
        elif list(context.shape) != [count, *shape]:
            raise UserError(
                f"context is {list(context.shape)} and the model takes {[count, *shape]} for {count} images"
            )
