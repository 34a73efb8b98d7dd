"""``generate``: images of a model, in Python as well as for ``udit sample``, and the files they are written to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from udit import __version__, dist
from udit.assemble import STRENGTH, System
from udit.data.fields import write_fields
from udit.diffusion.config import SamplingConfig
from udit.diffusion.sample import make_sampler
from udit.dist import World
from udit.errors import UserError, require_type
from udit.evaluation import npz
from udit.evaluation.sets import GRID
from udit.exporting.engines import Graph
from udit.exporting.find import EngineName, open_system
from udit.images import PROMPT_SIDE, grid, save_png, shown, to_image
from udit.inputs import Context as Context
from udit.inputs import (
    StartImages,
    condition_images,
    conditions_of_images,
    labels_of_images,
    recorded,
    start_images,
    weaker_model,
)
from udit.inputs import read_context as read_context
from udit.interpolation import Between, Through
from udit.progress import progress_bar
from udit.rng import Seed, seeds_of
from udit.run.classes import Label
from udit.target import make_room, prepare
from udit.tuning.levels import qualities, tuned_folder
from udit.tuning.quality import Level

MAX_GRID_IMAGES = 100
MAX_STRIP = 16
"""Most images of an interpolation that a grid has in one row."""


@dataclass(frozen=True)
class Batch:
    """Images that were sampled together."""

    images: Tensor
    """uint8 or float32 fields [b, C, H, W], on the CPU."""
    indices: list[int]
    """Of these images among all."""
    seeds: list[Seed]
    labels: list[Label] | None
    """None for a model without classes."""


@dataclass(frozen=True)
class Generation:
    """Images that are sampled when they are iterated over, batch after batch: ``for batch in generation``.

    On several ranks each iterates over its own share: every ``world.size``-th image from ``world.rank`` on.
    """

    system: System
    """Fused, or an exported graph."""
    seeds: Sequence[Seed]
    """One per image."""
    labels: Sequence[Label] | None
    """One per image, or None for a model without classes."""
    sampling: SamplingConfig
    context: Context | None
    batch_size: int
    world: World
    """The ranks; call ``world.close()`` at the end of a script that was started on several."""
    start: StartImages | None = None
    """What sampling starts from in place of noise."""
    strength: float = STRENGTH
    """Time to which those are noised, as a fraction."""
    beside: StartImages | None = None
    """Images of which the condition is made, for a model that sees one."""

    def __len__(self) -> int:
        """Number of images, over all ranks."""
        return len(self.seeds)

    def __iter__(self) -> Iterator[Batch]:
        """Samples this rank's images, without a progress bar."""
        return self.batches()

    def batches(self, progress: bool = False) -> Iterator[Batch]:
        """Samples this rank's images.

        Args:
            progress: shows a progress bar.

        Yields:
            Batches of ``batch_size`` images, in order.

        Raises:
            UserError: the setting or the context does not fit the model.
        """
        own = list(range(len(self.seeds)))[self.world.rank :: self.world.size]
        seeds = [self.seeds[i] for i in own]
        labels = [self.labels[i] for i in own] if self.labels is not None else None
        given: dict[str, Any] = {}
        if self.context is not None:
            given |= {"context": self.context.of(own), "null": self.context.null}
        if self.start is not None:
            given |= {"from_image": self.start.of(own), "strength": self.strength}
        if self.beside is not None:
            given |= {"condition": self.system.condition_of(self.beside.of(own), keys=own)}
        show = progress and self.world.is_main
        with progress_bar(len(own) * self.evaluations(), "sample", "step", show=show) as bar:
            done = 0
            for images in self.system.generate(
                seeds, labels, sampling=self.sampling, batch_size=self.batch_size, on_step=bar.update, **given
            ):
                part = slice(done, done + len(images))
                yield Batch(images, own[part], seeds[part], None if labels is None else labels[part])
                done += len(images)

    def images(self, progress: bool = False) -> Tensor:
        """All images, uint8 (or float32 fields) [N, C, H, W], on every rank."""
        return torch.cat(list(self._blocks(progress)))

    def save_pngs(self, folder: str | Path, progress: bool = False, *, overwrite: bool = False) -> None:
        """Writes 000000.png, 000001.png ... and grid.png, each rank its images.

        A text chunk of each PNG holds what it depends on: model, seed, label and sampling setting.

        Args:
            folder: made if it is missing; it may hold no other images, which a score would mix with these.
            progress: shows a progress bar.
            overwrite: removes the PNGs that an earlier call wrote there, and nothing else.

        Raises:
            UserError: the folder cannot be written to, or holds images already.
            RunError: the disk is full, or another rank is gone.
        """
        out = Path(folder)
        if self.frames is not None:
            raise UserError("output is png and the model draws clips; take gif, mp4 or npz")
        prepare(out)
        with self.world.together():
            self.world.on_main(make_room, out, overwrite)
        common = self.settings()
        first: list[Tensor] = []
        for batch in self.batches(progress):
            for i, pixels in zip(batch.indices, batch.images, strict=True):
                save_png(to_image(shown(pixels[None])[0]), out / f"{i:06d}.png", common | self.settings_of(i))
                if i < MAX_GRID_IMAGES:
                    first.append(pixels)
        count = min(len(self), MAX_GRID_IMAGES)
        with self.world.together():
            images = self.in_order(torch.stack(first) if first else None, count)
        if self.world.is_main:
            titles, numbers = self.titles(count)
            said = bool(self.context and self.context.prompts)
            columns = None if numbers or not titles or said else min(count, MAX_STRIP)
            sheet = grid(shown(images), titles, columns, PROMPT_SIDE if said else 64, numbers=numbers)
            save_png(sheet, out / GRID, common)

    @property
    def frames(self) -> int | None:
        """Of a clip; None where the model draws images."""
        return self.system.config.model.clip_frames

    def titles(self, count: int) -> tuple[list[str], list[int]]:
        """Titles of the first images, and the labels that they stand for; of prompts and interpolations no labels."""
        if self.context is not None and (texts := self.context.prompts):
            return [texts[i % len(texts)] for i in range(count)], []
        labels = None if self.labels is None else self.labels[:count]
        for what, points in (("", labels or ()), ("seed ", self.seeds[:count])):
            if any(isinstance(point, Between) for point in points):
                name = self.system.config.classes.title if not what else str
                return [
                    f"{point.share:.0%}" if isinstance(point, Between) else f"{what}{name(point)}" for point in points
                ], []
        whole = [label for label in labels or () if isinstance(label, int)]
        return [self.system.config.classes.title(label) for label in whole], whole

    def save_npz(self, path: str | Path, progress: bool = False) -> tuple[int, ...]:
        """Writes all images to one ``.npz`` in ADM's format: ``arr_0`` uint8 [N, H, W, C], ``arr_1`` int64 [N] labels.

        Clips are uint8 [N, F, H, W, C]. Images between classes have no labels. Fields are ``fields``, float32
        [N, C, H, W].

        Args:
            path: ends in ``.npz``; its folder is made if it is missing.
            progress: shows a progress bar.

        Returns:
            The shape of the array.

        Raises:
            UserError: the folder cannot be written to.
            RunError: the disk is full, or another rank is gone.
        """
        prepare(Path(path).parent)
        with self.world.together():
            blocks = self._blocks(progress)
            first = next(blocks)
            if first.is_floating_point():
                fields = torch.cat([first, *blocks])
                if self.world.is_main:
                    write_fields(Path(path), fields.numpy())
                return tuple(fields.shape)
            shape = tuple(first.shape[1:])
            parts = (block.numpy() for block in itertools.chain([first], blocks))
            if self.world.is_main:
                whole = self.labels is not None and not any(isinstance(label, Between) for label in self.labels)
                labels = np.array(self.labels, dtype=np.int64) if whole else None
                npz.write(Path(path), images=npz.ImageStream(len(self), shape, parts), labels=labels)
            else:
                for _ in parts:
                    pass
        return len(self), *shape[1:], shape[0]

    def settings(self) -> dict[str, Any]:
        """What all images depend on, as PNGs carry it."""
        common: dict[str, Any] = {"udit": __version__, "model": self.system.fingerprint}
        common["sampling"] = self.sampling.model_dump(mode="json")
        if isinstance(self.system.backbone, Graph):
            common |= {"engine": self.system.backbone.manifest.engine}
            common |= {"precision": self.system.backbone.manifest.precision}
        if self.system.half:
            common |= {"precision": "bfloat16"}
        if self.system.weak is not None and self.sampling.guidance != 1:
            common |= {"autoguide": self.system.weak.fingerprint}
        return common

    def settings_of(self, i: int) -> dict[str, Any]:
        """What image ``i`` alone depends on, as its PNG carries it."""
        own = recorded("seed", self.seeds[i])
        if self.labels is not None:
            label = self.labels[i]
            own |= recorded("label", label) | {"class": self.system.config.classes.title(label)}
        if self.start is not None:
            name = self.start.name(i)
            own |= {"strength": self.strength} | ({"from_image": name} if name else {})
        if self.beside is not None and (name := self.beside.name(i)):
            own |= {"condition": name}
        if self.context is not None:
            own |= self.context.recorded(i)
        return own

    def evaluations(self) -> int:
        """Evaluations of the denoiser per image.

        Raises:
            UserError: the strength leaves none.
        """
        if self.start is None:
            return self.sampling.steps
        sampler = make_sampler(self.sampling.sampler, eta=self.sampling.eta, clip=self.sampling.clip)
        return len(sampler.times(self.system.denoiser, self.sampling.steps, self.strength))

    def _blocks(self, progress: bool) -> Iterator[Tensor]:
        """All images in order, on every rank: one batch of each rank at a time."""
        own = self.batches(progress)
        size = self.batch_size * self.world.size
        for start in range(0, len(self), size):
            batch = next(own, None)
            yield self.in_order(None if batch is None else batch.images, min(size, len(self) - start))
        next(own, None)  # closes its progress bar

    def in_order(self, own: Tensor | None, count: int) -> Tensor:
        """The next ``count`` images of all ranks, in order, from this rank's share of them; None where it has none."""
        if self.world.size == 1:
            assert own is not None
            return own
        axes = 3 if self.frames is None else 4
        shape = torch.tensor([0] * axes if own is None else own.shape[1:])
        full = self.world.gather(shape).max(dim=0).values.tolist()
        floats = self.system.config.codec.kind == "field"
        padded = torch.zeros(-(-count // self.world.size), *full, dtype=torch.float32 if floats else torch.uint8)
        if own is not None:
            padded[: len(own)] = own
        return self.world.gather(padded).transpose(0, 1).reshape(-1, *full)[:count]


def generate(
    model: System | str | Path,
    seeds: Sequence[Seed] | None = None,
    labels: str | Sequence[int | str | Between[Any]] | Through | None = None,
    *,
    sampling: SamplingConfig | Mapping[str, Any] | None = None,
    quality: Level | None = None,
    prompts: str | Sequence[str] | None = None,
    negative: str = "",
    text_model: str | Path | None = None,
    context: Context | str | Path | None = None,
    from_image: str | Path | Tensor | None = None,
    strength: float | None = None,
    condition: str | Path | Tensor | None = None,
    autoguide: System | str | Path | float | None = None,
    batch_size: int = 64,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    engine: EngineName | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    compiled: bool = False,
    adapter: str | Path | None = None,
) -> Generation:
    """Images of a model, one per seed: the same seed and label give the same image in any batch and on any rank.

    Args:
        model: a run folder, a model folder, a hub id, a folder that ``udit.export`` wrote, or a loaded system.
        seeds: one per image; 0 to 15 if None, or one for each of several images to start from. A point between two, of
            ``udit.between``, interpolates their noise.
        labels: class numbers or names, repeated in turn, as a list or as a text like ``"cat,dog"`` (see
            ``Classes.labels``); all classes that the model was trained on in turn if None. A point between two
            interpolates their embeddings, and ``Through`` passes from class to class over all images.
        sampling: a complete setting, or the fields that differ from the model's own, e.g. ``{"steps": 20}``.
        quality: "draft", "good" or "best" in place of ``sampling``: what ``udit.tune`` found, or a default.
        prompts: texts, or one for all; ``negative`` is guided away from, ``text_model`` a moved language model.
        context: for a model that takes vectors: the conditions, or a file of them (``read_context``).
        from_image: image to image: what sampling starts from in place of noise, repeated in turn; an image file, a
            folder, or uint8 [M, C, H, W] (``start_images``).
        strength: of image to image: the time to which it is noised, as a fraction, above 0 (it stays) to 1 (noise
            alone); 0.6 if None.
        condition: what a model with ``data.condition`` sees too, repeated in turn; as ``from_image``, or an ``.npz``.
        autoguide: a weaker model that guidance compares with in place of the null label: a system, a folder, a hub id,
            or the length of a shorter EMA of the run (``weaker_model``).
        batch_size: images that are sampled together.
        device: auto, cpu, cuda, cuda:N or mps; a system that is given stays where it is.
        weights: "ema" (averaged) or "raw".
        engine: "torch", or the engine of the graph that ``udit.export`` put into the model's folder.
        precision: of the network's products; bfloat16 is for GPUs, and images differ by its rounding.
        compiled: compiles the network's blocks (torch.compile): the first step takes a minute, the others less.
        adapter: peft's folder with a low-rank adapter of the model, e.g. ``RUN/adapter`` of a run with
            ``training.adapter``; the model is the one that was adapted.

    Returns:
        The images, which are sampled when they are iterated over or saved.

    Raises:
        UserError: no such model, or labels, a setting or an engine that do not fit it.
    """
    if quality is not None and sampling is not None:
        raise UserError(f"sampling is given and quality {quality} sets it; leave one of them out")
    require_type("model", model, (System, str, Path), "give a folder, a hub id or a loaded system (udit.load)")
    model = tuned_folder(model) if quality is not None and not isinstance(model, System) else model
    seeds = None if seeds is None else seeds_of(seeds)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it counts images, at least 1")
    if isinstance(model, System):
        if adapter is not None:
            raise UserError("adapter is given and the model is loaded already; udit.load takes the adapter")
        system = model.fused()
        world = dist.start(str(next((p.device for p in system.backbone.parameters()), "cpu")))
    else:
        system, world = open_system(model, weights, device, engine, adapter)
    system = system if text_model is None else system.with_text_model(text_model)
    if quality is not None:
        chosen = qualities(None if isinstance(model, System) else Path(model), system)[quality]
    elif isinstance(sampling, SamplingConfig):
        chosen = sampling
    else:
        chosen = system.config.sampling.replace(**sampling or {})
    if autoguide is not None:
        if chosen.guidance == 1:
            raise UserError("autoguide is given and guidance 1 compares with nothing; give a guidance above 1, e.g. 2")
        system = system.autoguided(weaker_model(autoguide, model).fused().to(world.device))
    system = system.in_half() if precision == "bfloat16" else system
    if compiled:
        system = system.compiled()
    if isinstance(system.backbone, Graph) and (chosen.cache != 1 or chosen.refresh):
        cached = f"cache {chosen.cache}" if chosen.cache != 1 else "sampling.refresh"
        cached = f"quality {quality}" if quality else cached
        raise UserError(f"{cached} caches steps and an exported graph always runs whole; sample from the model instead")
    if strength is not None and from_image is None:
        raise UserError(
            f"strength is {strength:g} and there is no image to start from; give one (--from-image), or leave it out"
        )
    start = None if from_image is None else start_images(from_image, system)
    beside = None if condition is None else condition_images(condition, system)
    if seeds is None:
        given = start or beside
        wanted = 0 if prompts is None or isinstance(prompts, str) else len(prompts)
        seeds = [*range(max(16, wanted) if given is None or len(given.pixels) == 1 else len(given.pixels))]
    vectors = conditions_of_images(system, labels, prompts, negative, context, chosen.guidance, len(seeds))
    each = labels_of_images(labels, seeds, system.config.classes)
    strength = STRENGTH if strength is None else strength
    generation = Generation(system, seeds, each, chosen, vectors, batch_size, world, start, strength, beside)
    generation.evaluations()  # refuses a strength that leaves none, before a folder is made
    system.check_points(each)
    if beside is None and system.config.model.condition_channels:
        raise UserError(
            f"the model sees a condition of {system.config.model.condition_channels} channels beside the noisy image "
            "and was given none; pass condition, or --condition FILE to `udit sample`"
        )
    return generation
