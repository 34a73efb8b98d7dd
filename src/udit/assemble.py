"""Where the towers meet: a network, a noising process and a codec become a system that draws images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udit import rng
from udit.adapters import merged
from udit.data.codec import Codec, encode
from udit.diffusion.autocast import autocast
from udit.diffusion.beside import Beside, check_condition
from udit.diffusion.combine import rule_of
from udit.diffusion.conditions import label_tensor, prepared
from udit.diffusion.config import SamplingConfig
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.guidance import AnyDenoiser, Guided
from udit.diffusion.origin import Origin, check_images
from udit.diffusion.sample import SeededNoise, Step, make_sampler, sample
from udit.errors import UserError
from udit.fingerprints import Fingerprinted
from udit.fingerprints import fingerprint as fingerprint
from udit.interpolation import Between
from udit.joint import denoiser_of, step_cache
from udit.models.build import compile_blocks, fuse, lowered
from udit.prompts import Prompts, check_context, one_each
from udit.run.classes import Label
from udit.run.system import SystemConfig

STRENGTH = 0.6
"""Of image to image, where none is given."""


@dataclass(frozen=True)
class System:
    """A network with everything that sampling from it takes.

    One evaluation passes up to seven wrappers. From the network outwards, and where each is applied:

    1. ``PrecomputedConditions`` looks up what depends on time and label alone: ``generate``, once per call.
    2. ``Beside`` joins a condition to the noisy image: ``generate``, once per batch.
    3. ``StepCache.attach`` reuses the deep part's output: ``sample``, once per batch.
    4. ``Preconditioned``, of EDM alone, scales the network's input and output: ``denoiser_of``.
    5. ``Denoiser`` converts the time and turns the output into (x0, eps): ``denoiser_of``.
    6. ``Guided`` combines two predictions: ``guided``; with ``keep_guidance`` it is ``CachedGuidance``: ``sample``.
    7. ``respaced``, of ddpm and ddim, takes a part of the schedule's steps: the sampler, on all of the above.
    """

    config: SystemConfig
    backbone: nn.Module
    loaded_codec: Codec | None = field(default=None, repr=False, compare=False)
    """The codec, where it has been loaded already, e.g. a VAE by training."""
    fused_from: str | None = field(default=None, repr=False, compare=False)
    """Fingerprint of the weights that ``fused`` folded into those of ``backbone``."""
    text_encoder: Callable[[Sequence[str]], Tensor] | None = field(default=None, repr=False, compare=False)
    """Makes conditions of prompts in place of the language model, e.g. of a training's captions, which are known."""
    weak: System | None = field(default=None, repr=False, compare=False)
    """Autoguidance: a worse model of the same kind, which guidance compares with; see ``autoguided``."""

    half: bool = False
    """Whether the network computes in bfloat16, see ``in_half``."""

    @property
    def denoiser(self) -> Denoiser:
        """The network as a denoiser."""
        denoiser = denoiser_of(self.config, self.backbone)
        if not self.half:
            return denoiser
        device = next(p.device for p in self.backbone.parameters())
        return denoiser.with_network(lambda network: autocast(network, device))

    @cached_property
    def codec(self) -> Codec:
        """Converts between pixels and the model's data; a VAE is loaded when first used.

        Raises:
            UserError: the VAE is missing, or is another one.
        """
        return self.loaded_codec or self.config.codec.build()

    def with_text_model(self, source: str | Path) -> System:
        """The same with its language model at another place.

        Raises:
            UserError: the model takes no texts.
        """
        text = self.config.prompted.replace(source=str(source), revision=None)
        return dataclasses.replace(self, config=self.config.replace(text=text), text_encoder=None)

    @cached_property
    def conditions_of(self) -> Callable[[Sequence[str]], Tensor]:
        """Makes what the model takes of prompts, float32 [N, ...]; of the empty one, what guidance compares with.

        Raises:
            UserError: the model takes no texts; or, when it is called, its language model is missing or another one.
        """
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))
        return self.text_encoder or Prompts(self.config, device)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it draws."""
        return self.codec.image_shape(self.config.model.in_channels, *self.config.model.size)

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
        """The same with the fused network (``udit.fuse``); an exported graph, which is fused, as it is."""
        if isinstance(self.backbone, Fingerprinted):
            return self
        backbone = fuse(merged(self.backbone))
        config = self.config.model_copy(update={"model": backbone.config})
        weak = self.weak and self.weak.fused()
        return dataclasses.replace(self, config=config, backbone=backbone, fused_from=self.fingerprint, weak=weak)

    def in_half(self) -> System:
        """The same with matrices and convolutions in bfloat16; sampler, norms and sums of the guidance stay in float32.

        Raises:
            UserError: an exported graph has the precision that it was exported in.
        """
        if isinstance(self.backbone, Fingerprinted):
            raise UserError("precision is bfloat16 and an exported graph has its own; sample from the model itself")
        weak = self.weak and self.weak.in_half()
        return dataclasses.replace(
            self, backbone=lowered(self.backbone), fused_from=self.fingerprint, weak=weak, half=True
        )

    def compiled(self) -> System:
        """The same, its blocks compiled in place by torch.compile: the first step of each batch size takes a minute."""
        for system in (self, self.weak):
            if system is not None and not isinstance(system.backbone, Fingerprinted):
                compile_blocks(system.backbone)
        return self

    def to(self, device: torch.device | str) -> System:
        """Moves the network (in place, as ``nn.Module.to``) and returns the system."""
        self.backbone.to(device)
        if self.weak is not None:
            self.weak.to(device)
        return self

    def autoguided(self, weak: System) -> System:
        """The same, guided by comparison with a weaker model in place of the null label (Karras et al. 2024).

        Args:
            weak: trained for less long, averaged over fewer steps (``posthoc_ema``), or smaller; of the same data,
                classes and noising process.

        Raises:
            UserError: it is of another kind, or has the same weights.
        """
        own, other = self.config, weak.config
        for what, mine, its in (
            ("channels", own.model.input_channels, other.model.input_channels),
            ("size", own.model.size, other.model.size),
            ("number of classes", own.model.num_classes, other.model.num_classes),
            ("condition", own.model.condition_shape, other.model.condition_shape),
            ("codec", own.codec.kind, other.codec.kind),
            ("VAE", getattr(own.codec, "sha256", None), getattr(other.codec, "sha256", None)),
        ):
            if mine != its:
                raise UserError(
                    f"the weaker model has another {what} ({its}) than the model ({mine}); take one that was trained "
                    "on the same data"
                )
        Guided(self.denoiser, 2.0, weak=weak.denoiser)  # refuses another process
        if weak.fingerprint == self.fingerprint:
            raise UserError("the weaker model has the same weights as the model, so there is nothing to compare with")
        return dataclasses.replace(self, weak=dataclasses.replace(weak, weak=None))

    def labels(self, wanted: str | Sequence[int | str]) -> list[int]:
        """Class names or numbers as labels; see ``Classes.labels``.

        Raises:
            UserError: an unknown name, a number out of range, or any for an unconditional model.
        """
        return self.config.classes.labels(wanted)

    def guided(self, sampling: SamplingConfig, null: Tensor | None = None) -> AnyDenoiser:
        """The denoiser, guided as a setting says; ``null`` as in ``generate``.

        Raises:
            UserError: guidance without a null label or a weaker model, of more channels than the model predicts, or of
                a kind that the process does not have.
        """
        if (sampling.guidance_channels or 0) > self.config.model.in_channels:
            raise UserError(
                f"guidance_channels is {sampling.guidance_channels} and the model predicts "
                f"{self.config.model.in_channels}; leave it out to guide all"
            )
        if sampling.guidance == 1:
            return self.denoiser
        if self.weak is not None and sampling.cache > 1 and self.weak.config.model.time != self.config.model.time:
            raise UserError(
                f"cache is {sampling.cache} and the weaker model has another unit of time, so that its last steps "
                "cannot be recognised; set cache to 1, or name evaluations in refresh"
            )
        return Guided(
            self.denoiser,
            sampling.guidance,
            sampling.guidance_interval,
            sampling.guidance_channels,
            null=null if self.weak is None else None,
            rule=rule_of(sampling),
            rescale=sampling.guidance_rescale,
            levels=sampling.guidance_levels,
            weak=None if self.weak is None else self.weak.denoiser,
            zero_init=sampling.zero_init,
        )

    def generate(
        self,
        seeds: Sequence[rng.Seed],
        labels: str | Sequence[int | str | Between[Any]] | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        negative: str = "",
        context: Tensor | None = None,
        null: Tensor | None = None,
        sampling: SamplingConfig | None = None,
        from_image: Tensor | None = None,
        strength: float = STRENGTH,
        condition: Tensor | None = None,
        batch_size: int = 64,
        on_step: Callable[[int], object] | None = None,
    ) -> Iterator[Tensor]:
        """Draws one image per seed; a seed and label give the same image in any batch.

        Args:
            seeds: one per image; a point between two (``udit.between``) interpolates their noise.
            labels: one per image, class numbers or names (see ``Classes.labels``); a point between two interpolates
                their embeddings. None for an unconditional model, or for images of no class.
            prompts: one per image, or one for all, for a model that takes texts.
            negative: the prompt that guidance compares with.
            context: float [N, ...], one condition per image, for a model that takes vectors (``condition_shape``).
            null: the null condition of such a model, e.g. of the empty text; guidance compares with it.
            sampling: sampler, steps, guidance and cache; the model's own setting if None.
            from_image: uint8 [N, C, H, W], an image to start from for each seed, of the size that the model draws.
            strength: the time to which they are noised, as a fraction: above 0 (they stay) to 1 (noise alone).
            condition: float [N, Cc, H, W], of ``condition_of``, for a model that sees one beside the noisy image.
            batch_size: images at a time.
            on_step: called after every step with the number of images in the batch.

        Returns:
            uint8 [b, C, H, W], or float32 fields, batch after batch, sampled when they are iterated over.

        Raises:
            UserError: the sampler does not fit the model, guidance without a null label or of too many channels, labels
                that the model does not know or that are not one per seed, a context that the model does not take, or
                lacks, or images of another shape.
        """
        options: dict[str, Any] = {"from_image": from_image, "strength": strength, "condition": condition}
        options |= {"batch_size": batch_size, "sampling": sampling, "prompts": prompts, "negative": negative}
        steps = self.steps(seeds, labels, context=context, null=null, **options)
        return self._images(steps, on_step)

    def condition_of(self, images: Tensor, *, before: Tensor | None = None, keys: Sequence[int] = ()) -> Tensor:
        """What the network sees beside the noisy image, made of whole images as in training: [N, Cc, H, W].

        Args:
            images: uint8 or fields, [N, C, H, W]; of a model of next states, the states to go on from.
            before: the states before ``images``, of a model of next states; then ``images`` is not looked at.
            keys: N numbers by which rectangles are drawn that are to be filled in; 0, 1, ... if not given.

        Raises:
            UserError: the model sees nothing beside the noisy image.
        """
        if self.config.condition is None:
            raise UserError("the model sees nothing beside the noisy image (data.condition); leave the condition out")
        x0 = encode(self.codec, images)
        state = x0 if before is None else encode(self.codec, before)
        pairs = [(0, key) for key in keys or range(len(images))]
        return self.config.condition.build()(x0, state, pairs)

    def _images(self, steps: Iterator[Step], on_step: Callable[[int], object] | None) -> Iterator[Tensor]:
        for step in steps:
            if on_step:
                on_step(len(step.x))
            if step.index == step.total:
                yield self.codec.decode(step.x.float()).cpu()

    def steps(
        self,
        seeds: Sequence[rng.Seed],
        labels: str | Sequence[int | str | Between[Any]] | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        negative: str = "",
        context: Tensor | None = None,
        null: Tensor | None = None,
        sampling: SamplingConfig | None = None,
        from_image: Tensor | None = None,
        strength: float = STRENGTH,
        condition: Tensor | None = None,
        batch_size: int = 64,
    ) -> Iterator[Step]:
        """As ``generate``, and yields every step; a batch's last one (``index`` is ``total``) has what is decoded."""
        seeds = rng.seeds_of(seeds)
        if labels is not None and self.config.text is not None:
            raise UserError("labels were given to a model that takes texts; give prompts")
        if prompts is not None:
            if context is not None or null is not None:
                raise UserError("prompts and a context are given; both are conditions, leave one of them out")
            context, null = self.conditions_of(one_each(prompts, len(seeds))), self.conditions_of([negative])[0]
        chosen = None if labels is None else self.config.classes.points(labels)
        if chosen is not None and len(chosen) != len(seeds):
            raise UserError(f"labels are {len(chosen)} and seeds {len(seeds)}; give one label for each seed")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it counts images, at least 1")
        self.check_points(chosen)
        check_context(self.config, context, len(seeds), given=context is not None or null is not None)
        if from_image is not None:
            check_images(from_image, len(seeds), self.image_shape)
        model = self.config.model
        check_condition(condition, (len(seeds), model.condition_channels, *model.size))
        start = None if from_image is None else (from_image, strength)
        return self._steps(seeds, chosen, context, null, sampling or self.config.sampling, start, condition, batch_size)

    def _steps(
        self,
        seeds: list[rng.Seed],
        labels: list[Label] | None,
        context: Tensor | None,
        null: Tensor | None,
        sampling: SamplingConfig,
        start_from: tuple[Tensor, float] | None,
        condition: Tensor | None,
        batch_size: int,
    ) -> Iterator[Step]:
        """As ``steps``, which has checked the arguments."""
        device = next((p.device for p in self.backbone.parameters()), torch.device("cpu"))  # an exported graph has none
        denoiser = self.guided(sampling, null)
        codec = self.codec  # before the first step, so that a missing VAE is an error at once
        cache = step_cache(self.config.model, sampling)
        sampler = make_sampler(sampling.sampler, eta=sampling.eta, clip=sampling.clip)
        images, strength = start_from or (None, 1.0)
        model = self.config.model
        rows = model.num_classes + (model.null_label is not None)
        given = context if context is not None or labels is None else label_tensor(labels, rows)
        if given is None or not given.is_floating_point():  # of vectors and of shares every image has its own
            known = None if given is None else given.tolist()
            denoiser = prepared(denoiser, sampler, sampling.steps, known, device, strength)
        shape = self.config.model.input_shape()
        networks = [self.backbone] if self.weak is None else [self.backbone, self.weak.backbone]
        were_training = [network.training for network in networks]
        for network in networks:
            network.eval()
        try:
            for start in range(0, len(seeds), batch_size):
                part = slice(start, start + batch_size)
                noise = SeededNoise(seeds[part], shape, device)
                y = None if given is None else given[part].to(device)
                origin = None if images is None else Origin(encode(codec, images[part].to(device)), strength)
                options: dict[str, Any] = {"sampler": sampler, "steps": sampling.steps, "noise": noise, "cache": cache}
                beside = None if condition is None else condition[part].to(device)
                asked = denoiser if beside is None else denoiser.with_network(partial(Beside, condition=beside))
                yield from sample(asked, noise(0), y=y, origin=origin, **options)
        finally:
            for network, training in zip(networks, were_training, strict=True):
                network.train(training)

    def check_points(self, labels: Sequence[Label] | None) -> None:
        """Refuses points between classes where a network is an exported graph, which cannot take them (UserError)."""
        networks = [self.backbone] if self.weak is None else [self.backbone, self.weak.backbone]
        between = any(isinstance(label, Between) for label in labels or ())
        if between and any(isinstance(network, Fingerprinted) for network in networks):
            raise UserError("an exported graph takes whole classes; interpolate between classes with the model itself")
