"""Sampling for the page: what may be asked for, and the images after every step of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from udit.assemble import STRENGTH, System
from udit.data.codec_config import VAECodec
from udit.diffusion.config import SamplingConfig, check_sampler
from udit.diffusion.samplers import SAMPLERS
from udit.diffusion.settings import GUIDANCE_KEYS
from udit.dist import World
from udit.errors import UserError
from udit.generation import Generation
from udit.inputs import Context, StartImages, conditions_of_images
from udit.interpolation import between
from udit.rng import Seed
from udit.run.classes import Label
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

    seeds: tuple[Seed, ...]
    labels: tuple[Label, ...] | None
    """One for each seed; None for a model without classes."""
    sampling: SamplingConfig
    columns: int
    """Of the grid: classes or prompts in a row, one row for each seed; 0 is as many as fit."""
    prompts: tuple[str, ...] | None = None
    """One for each seed; None for a model that takes no texts."""
    negative: str = ""
    """The prompt that guidance compares with."""
    context: Context | None = None
    """What the language model makes of the prompts, see ``read_by``."""
    start: StartImages | None = None
    """What sampling starts from in place of noise."""
    strength: float = STRENGTH
    """The time to which those are noised, as a fraction."""

    def generation(self, system: System) -> Generation:
        """The same as the library's own request, which knows the settings that PNGs carry."""
        size, options = batch_size(system.config), (self.start, self.strength)
        return Generation(system, self.seeds, self.labels, self.sampling, self.context, size, World(), *options)

    def read_by(self, system: System) -> Drawing:
        """The same, its prompts read by the language model of a system.

        Raises:
            UserError: the language model is missing or another one, or guidance has no use for the negative prompt.
        """
        if self.prompts is None:
            return self
        given = (self.prompts, self.negative, None, self.sampling.guidance, len(self.seeds))
        return dataclasses.replace(self, context=conditions_of_images(system, None, *given))


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
    """A setting with changes; what belongs to another sampler, other steps or another kind of guidance goes.

    Raises:
        UserError: values out of range, or a sampler that does not serve the model's noising process.
    """
    new = {key: changes.get(key, getattr(base, key)) for key in ("sampler", "steps", "guidance_kind")}
    dropped: dict[str, Any] = {}
    if (new["sampler"], new["steps"]) != (base.sampler, base.steps):
        dropped |= {"cache": 1, "refresh": (), "forecast": False, "keep_guidance": False}
    for kind, keys in GUIDANCE_KEYS.items():
        if kind != new["guidance_kind"]:
            dropped |= {key: SamplingConfig.model_fields[key].default for key in keys}
    if new["guidance_kind"] == "cfg-zero" and new["sampler"] in SAMPLERS and not SAMPLERS[new["sampler"]].zero_init:
        dropped |= {"guidance_zero_init": 0}
    sampling = base.replace(**dropped | dict(changes))
    check_sampler(sampling.sampler, type(config.diffusion), sampling.steps)
    most = min(config.diffusion.max_steps or MOST_STEPS, MOST_STEPS)
    if sampling.steps > most:
        raise UserError(f"steps is {sampling.steps}; the most here are {most}")
    return sampling


def drawing(
    config: SystemConfig,
    seeds: str,
    classes: Sequence[str | int],
    sampling: SamplingConfig,
    prompts: str = "",
    negative: str = "",
) -> Drawing:
    """Every seed with every class or prompt.

    Args:
        config: of the model.
        seeds: a text for ``seeds_in``.
        classes: numbers or names; empty is all, as many as a row has room for.
        sampling: the setting.
        prompts: of a model that takes texts, one a line.
        negative: of such a model: what guidance compares with in place of the empty prompt.

    Raises:
        UserError: no seeds, no prompt, an unknown class, or more than ``MOST`` images.
    """
    rows = seeds_in(seeds)
    if config.text is not None:
        texts = prompts_in(prompts)
        each = [(seed, text) for seed in _few(rows, texts, "prompts") for text in texts]
        drawn, said = (tuple(column) for column in zip(*each, strict=True))
        return Drawing(drawn, None, sampling, len(texts), said, negative.strip())
    if not config.classes.count:
        return Drawing(tuple(rows), None, sampling, 0)
    chosen = config.classes.labels(classes) if classes else default_labels(config)
    pairs = [(seed, label) for seed in _few(rows, chosen, "classes") for label in chosen]
    return Drawing(tuple(seed for seed, _ in pairs), tuple(label for _, label in pairs), sampling, len(chosen))


def _few(seeds: list[int], columns: Sequence[object], what: str) -> list[int]:
    """The seeds, if each with every class or prompt makes no more than ``MOST`` images (UserError)."""
    count = len(seeds) * len(columns)
    if count > MOST:
        raise UserError(
            f"{len(seeds)} seeds of {len(columns)} {what} are {count} images and {MOST} the most; give fewer"
        )
    return seeds


def prompts_in(text: str) -> list[str]:
    """The prompts of a text, one a line, in which spaces count once.

    Raises:
        UserError: there is none.
    """
    found = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not found:
        raise UserError("the model takes texts and there is no prompt; write one, or several, one a line")
    return found


def default_labels(config: SystemConfig) -> list[int]:
    """The classes of a drawing that names none: all, or the first ten."""
    return list(range(min(config.classes.trained, 10)))


def passage(
    config: SystemConfig,
    seeds: str,
    classes: Sequence[str | int],
    count: int,
    sampling: SamplingConfig,
    prompts: str = "",
    negative: str = "",
) -> Drawing:
    """Images from the first of some seeds and classes through the others to the last; both change together.

    Args:
        config: of the model.
        seeds: a text for ``seeds_in``; one seed stays.
        classes: numbers or names; one stays.
        count: images, both ends included.
        sampling: the setting.
        prompts: of a model that takes texts, one.
        negative: as of ``drawing``.

    Raises:
        UserError: nothing to pass between, or more images than ``MOST``.
    """
    if not 2 <= count <= MOST:
        raise UserError(f"images are {count}; take 2 to {MOST}")
    ends = seeds_in(seeds)
    if config.text is not None:
        said, *more = prompts_in(prompts)
        if more:
            raise UserError(f"there are {1 + len(more)} prompts; of one prompt images pass between seeds, so give one")
        if len(ends) < 2:
            raise UserError("there is nothing to pass between; give two seeds, e.g. 0, 1")
        return Drawing(tuple(between(ends, count)), None, sampling, 0, (said,) * count, negative.strip())
    chosen = config.classes.labels(classes) if classes and config.classes.count else []
    if config.classes.count and not chosen:
        raise UserError("choose a class, or several to pass between")
    if len(ends) < 2 and len(chosen) < 2:
        raise UserError("there is nothing to pass between; give two seeds, e.g. 0, 1, or choose two classes")
    points = [tuple(between(each, count)) if len(each) > 1 else tuple(each * count) for each in (ends, chosen)]
    return Drawing(points[0], points[1] or None, sampling, 0)


def batch_size(config: SystemConfig) -> int:
    """Images that are sampled together."""
    height, width = config.model.size
    return max(1, BATCH_VALUES // (height * width))


def draw(system: System, wanted: Drawing, view: View = "x0") -> Iterator[Frame]:
    """Samples, and yields after every step; no work is done between two frames, so that dropping it stops it.

    Args:
        system: fused.
        wanted: what to draw, of ``Drawing.read_by`` where there are prompts.
        view: what is shown before the last step.

    Yields:
        As many frames as there are steps and batches; the last one is the samples.

    Raises:
        UserError: the setting does not fit the model.
    """
    count, size = len(wanted.seeds), batch_size(system.config)
    codec, hides = system.codec, isinstance(system.config.codec, VAECodec)
    images = None if wanted.start is None else wanted.start.of(range(count))
    options: dict[str, Any] = {"from_image": images, "strength": wanted.strength, "batch_size": size}
    if wanted.context is not None:
        options |= {"context": wanted.context.rows, "null": wanted.context.null}
    steps = system.steps(wanted.seeds, wanted.labels, sampling=wanted.sampling, **options)
    ready: list[Tensor] = []
    start, done = time.monotonic(), 0
    for step in steps:
        done, last = done + 1, step.index == step.total
        x = step.x if last or view == "x" else step.x0
        with torch.no_grad():
            now = [*(codec.decode(x.float()) if last or not hides else colours(x)).cpu()]
        total = step.total * -(-count // size)
        yield Frame([*ready, *now], done, total, time.monotonic() - start, latent=hides and not last)
        ready += now if last else []


def colours(latents: Tensor) -> Tensor:
    """The first three channels of latents [B, C, H, W] as uint8 [B, 3, H, W]; three standard deviations fill the range.

    With fewer channels the last one is repeated.
    """
    channels = [min(i, latents.shape[1] - 1) for i in range(3)]
    x = latents[:, channels].float()
    scale = x.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return (127.5 + x / scale * 42.5).clamp(0, 255).to(torch.uint8)
