"""Sampling for the page: what may be asked for, and the images after every step of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from udit.assemble import System, step_cache
from udit.data.codec_config import VAECodec
from udit.diffusion.conditions import prepared
from udit.diffusion.config import SamplingConfig, check_sampler
from udit.diffusion.sample import SeededNoise, Step, make_sampler, sample
from udit.errors import UserError
from udit.run.system import SystemConfig
from udit.spec.base import MAX_SEED
from udit.tuning.quality import Level, Quality, Scored, default

log = logging.getLogger(__name__)
LEVELS: tuple[Level, ...] = ("draft", "good", "best")

MOST = 100
"""Most images of one drawing."""
MOST_STEPS = 1000
"""Most network evaluations for an image."""
BATCH_VALUES = 2**14
"""Positions (height times width) of a batch: 256 images of 8x8, 4 of 64x64; a step ends before a drawing can stop."""

View = Literal["x0", "x"]
"""What is shown while sampling: the prediction of the samples, or the noisy images themselves."""


@dataclass(frozen=True)
class Frame:
    """The images so far."""

    images: list[Tensor]
    """uint8 [C, H, W] each; those whose turn has not come yet are left out."""
    done: int
    """Network evaluations that are done, over all batches."""
    total: int
    seconds: float
    """Since the first step began."""
    latent: bool
    """Whether some images are latents, which the VAE has not decoded yet: their first channels as colours."""

    @property
    def finished(self) -> bool:
        """Whether these are the samples."""
        return self.done == self.total and not self.latent


@dataclass(frozen=True)
class Drawing:
    """What to draw: one image for each seed and label."""

    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    """One for each seed; None for a model without classes."""
    sampling: SamplingConfig
    columns: int
    """Of the grid: classes in a row, one row for each seed; without classes as many as fit."""


def seeds_in(text: str, most: int = MOST) -> list[int]:
    """Seeds of ``0-3`` or ``3, 5, 8`` or both mixed.

    Raises:
        UserError: the text is no such list, or names more than ``most``.
    """
    seeds: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"seeds has {part[:40]!r}; write whole numbers and ranges, e.g. 0-3 or 3, 5, 8")
        low, high = int(first), int(last or first)
        if high < low or high > MAX_SEED:
            raise UserError(f"seeds has {part[:40]!r}; a range runs upwards, to at most {MAX_SEED}")
        if high - low + 1 + len(seeds) > most:
            raise UserError(f"seeds are more than {most}, the most images of one drawing; give fewer")
        seeds += range(low, high + 1)
    return seeds


def presets(config: SystemConfig, folder: Path | None) -> dict[str, SamplingConfig]:
    """The model's own setting and three by quality: what ``udit tune`` found for the folder, or the defaults."""
    try:
        tuned = None if folder is None else Quality.read(folder)
    except UserError as error:
        log.warning("%s", error)
        tuned = None
    found = {"own": config.sampling}
    for level in LEVELS:
        scored: Scored | None = getattr(tuned, level, None)
        found[level] = scored.sampling if scored else default(level, config.sampling, config.diffusion)
    return found


def sampling_of(config: SystemConfig, base: SamplingConfig, changes: Mapping[str, Any]) -> SamplingConfig:
    """A setting with changes. Step caching belongs to a sampler and its steps, and goes when these change.

    Raises:
        UserError: values out of range, or a sampler that does not serve the model's noising process.
    """
    plain = {"cache": 1, "refresh": (), "forecast": False, "keep_guidance": False}
    kept = all(changes.get(key, getattr(base, key)) == getattr(base, key) for key in ("sampler", "steps"))
    sampling = base.replace(**({} if kept else plain), **changes)
    check_sampler(sampling.sampler, type(config.diffusion), sampling.steps)
    most = min(config.diffusion.max_steps or MOST_STEPS, MOST_STEPS)
    if sampling.steps > most:
        raise UserError(f"steps is {sampling.steps}; the most here are {most}")
    return sampling


def drawing(config: SystemConfig, seeds: str, classes: Sequence[str | int], sampling: SamplingConfig) -> Drawing:
    """Every seed with every class.

    Args:
        config: of the model.
        seeds: a text for ``seeds_in``.
        classes: numbers or names; empty is all, as many as a row has room for.
        sampling: the setting.

    Raises:
        UserError: no seeds, an unknown class, or more than ``MOST`` images.
    """
    rows = seeds_in(seeds)
    if not config.classes.count:
        return Drawing(tuple(rows), None, sampling, 0)
    chosen = config.classes.labels(list(classes)) if classes else default_labels(config)
    count = len(rows) * len(chosen)
    if count > MOST:
        raise UserError(f"{len(rows)} seeds of {len(chosen)} classes are {count} images and {MOST} the most; give fewer")
    each = [(seed, label) for seed in rows for label in chosen]
    return Drawing(tuple(seed for seed, _ in each), tuple(label for _, label in each), sampling, len(chosen))


def default_labels(config: SystemConfig) -> list[int]:
    """The classes of a drawing that names none: all, or the first ten."""
    return list(range(min(config.classes.trained, 10)))


def draw(system: System, wanted: Drawing, view: View = "x0") -> Iterator[Frame]:
    """Samples, and yields after every step; no work is done between two frames, so that dropping it stops it.

    Args:
        system: fused.
        wanted: what to draw.
        view: what is shown before the last step.

    Yields:
        As many frames as there are steps and batches; the last one is the samples.

    Raises:
        UserError: the setting does not fit the model.
    """
    height, width = system.config.model.size
    size = max(1, BATCH_VALUES // (height * width))
    parts = [slice(start, start + size) for start in range(0, len(wanted.seeds), size)]
    codec, hides = system.codec, isinstance(system.config.codec, VAECodec)
    ready: list[Tensor] = []
    start, done = time.monotonic(), 0
    for part in parts:
        labels = None if wanted.labels is None else wanted.labels[part]
        for step in steps_of(system, wanted.seeds[part], labels, wanted.sampling):
            total, done, last = step.total, done + 1, step.index == step.total
            x = step.x if last or view == "x" else step.x0
            with torch.no_grad():
                now = [*(codec.decode(x.float()) if last or not hides else colours(x)).cpu()]
            yield Frame([*ready, *now], done, total * len(parts), time.monotonic() - start, latent=hides and not last)
            if last:
                ready += now


def colours(latents: Tensor) -> Tensor:
    """The first three channels of latents [B, C, H, W] as uint8 [B, 3, H, W]; three standard deviations fill the range.

    With fewer channels the last one is repeated.
    """
    channels = [min(i, latents.shape[1] - 1) for i in range(3)]
    x = latents[:, channels].float()
    scale = x.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return (127.5 + x / scale * 42.5).clamp(0, 255).to(torch.uint8)


def steps_of(
    system: System, seeds: Sequence[int], labels: Sequence[int] | None, sampling: SamplingConfig
) -> Iterator[Step]:
    """Every step of one batch. Each is computed by the thread that asks for it, without gradients."""
    device = next(p.device for p in system.backbone.parameters())
    denoiser = system.guided(sampling)
    sampler = make_sampler(sampling.sampler, eta=sampling.eta, clip=sampling.clip)
    denoiser = prepared(denoiser, sampler, sampling.steps, labels, device)
    noise = SeededNoise(seeds, (system.config.model.in_channels, *system.config.model.size), device)
    y = None if labels is None else torch.tensor(labels, device=device)
    cache = step_cache(system.config.model, sampling)
    found = sample(denoiser, noise(0), sampler=sampler, steps=sampling.steps, y=y, noise=noise, cache=cache)
    steps = cast("Generator[Step]", found)  # to close it
    try:
        while True:
            with torch.no_grad():  # the mode is a thread's own, and the next step may be asked for by another one
                step = next(steps, None)
            if step is None:
                return
            yield step
    finally:
        with torch.no_grad():
            steps.close()
