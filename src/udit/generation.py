"""``generate``: images of a model, in Python as well as for ``udit sample``, and the files they are written to."""

from __future__ import annotations

import itertools
import logging
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from udit import __version__, dist
from udit.assemble import System
from udit.data.listing import is_image
from udit.diffusion.config import SamplingConfig
from udit.dist import World
from udit.errors import UserError, require_type
from udit.evaluation import npz
from udit.evaluation.sets import GRID
from udit.exporting.engines import Graph
from udit.exporting.find import EngineName, find_graph, load_graph
from udit.files import check_writable
from udit.images import grid, has_settings, save_png, to_image
from udit.progress import progress_bar
from udit.rng import seeds_of
from udit.store import load
from udit.tuning.quality import Level, Quality, Scored, default

logger = logging.getLogger(__name__)
MAX_GRID_IMAGES = 100


@dataclass(frozen=True)
class Context:
    """Conditions of a model that takes vectors, e.g. a text encoder's output."""

    rows: Tensor
    """float [N, tokens, width]; image i has row i modulo N."""
    null: Tensor | None = None
    """float [tokens, width]: the empty condition, which guidance needs."""
    name: str = ""
    """Of the file they come from; PNGs carry it."""

    def of(self, indices: Sequence[int]) -> Tensor:
        """The conditions of some images."""
        return self.rows[[i % len(self.rows) for i in indices]]


@dataclass(frozen=True)
class Batch:
    """Images that were sampled together."""

    images: Tensor
    """uint8 [b, C, H, W], on the CPU."""
    indices: list[int]
    """Of these images among all."""
    seeds: list[int]
    labels: list[int] | None
    """None for a model without classes."""


@dataclass(frozen=True)
class Generation:
    """Images that are sampled when they are iterated over, batch after batch: ``for batch in generation``.

    On several ranks each iterates over its own share: every ``world.size``-th image from ``world.rank`` on.
    """

    system: System
    """Fused, or an exported graph."""
    seeds: Sequence[int]
    """One per image."""
    labels: Sequence[int] | None
    """One per image, or None for a model without classes."""
    sampling: SamplingConfig
    context: Context | None
    batch_size: int
    world: World
    """The ranks; call ``world.close()`` at the end of a script that was started on several."""

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
        vectors = {} if self.context is None else {"context": self.context.of(own), "null": self.context.null}
        show = progress and self.world.is_main
        with progress_bar(len(own) * self.sampling.steps, "sample", "step", show=show) as bar:
            done = 0
            for images in self.system.generate(
                seeds, labels, sampling=self.sampling, batch_size=self.batch_size, on_step=bar.update, **vectors
            ):
                part = slice(done, done + len(images))
                yield Batch(images, own[part], seeds[part], None if labels is None else labels[part])
                done += len(images)

    def images(self, progress: bool = False) -> Tensor:
        """All images, uint8 [N, C, H, W], on every rank."""
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
        out, named = Path(folder), self.system.config.classes
        _prepare(out)
        with self.world.together():
            self.world.on_main(_make_room, out, overwrite)
        shown: list[Tensor] = []
        for batch in self.batches(progress):
            for i, pixels in zip(batch.indices, batch.images, strict=True):
                save_png(to_image(pixels), out / f"{i:06d}.png", self.settings(i))
                if i < MAX_GRID_IMAGES:
                    shown.append(pixels)
        count = min(len(self), MAX_GRID_IMAGES)
        with self.world.together():
            images = self._in_order(torch.stack(shown) if shown else None, count)
        if self.world.is_main:
            labels = self.labels[:count] if self.labels is not None else ()
            titles = [named.title(label) for label in labels]
            save_png(grid(images, titles, numbers=labels), out / GRID, self.settings())

    def save_npz(self, path: str | Path, progress: bool = False) -> tuple[int, ...]:
        """Writes all images to one ``.npz`` in ADM's format: ``arr_0`` uint8 [N, H, W, C], ``arr_1`` int64 [N] labels.

        Args:
            path: ends in ``.npz``; its folder is made if it is missing.
            progress: shows a progress bar.

        Returns:
            The shape of ``arr_0``.

        Raises:
            UserError: the folder cannot be written to.
            RunError: the disk is full, or another rank is gone.
        """
        _prepare(Path(path).parent)
        with self.world.together():
            blocks = self._blocks(progress)
            first = next(blocks)
            channels, height, width = first.shape[1:]
            parts = (block.numpy() for block in itertools.chain([first], blocks))
            if self.world.is_main:
                labels = None if self.labels is None else np.array(self.labels, dtype=np.int64)
                npz.write(
                    Path(path), images=npz.ImageStream(len(self), (channels, height, width), parts), labels=labels
                )
            else:
                for _ in parts:
                    pass
        return len(self), height, width, channels

    def settings(self, i: int | None = None) -> dict[str, Any]:
        """What image ``i`` depends on, or all images alike; PNGs carry it."""
        common: dict[str, Any] = {"udit": __version__, "model": self.system.fingerprint}
        common["sampling"] = self.sampling.model_dump(mode="json")
        if isinstance(self.system.backbone, Graph):
            common |= {"engine": self.system.backbone.manifest.engine}
            common |= {"precision": self.system.backbone.manifest.precision}
        return common if i is None else common | self._own_settings(i)

    def _own_settings(self, i: int) -> dict[str, Any]:
        """What image ``i`` alone depends on."""
        own: dict[str, Any] = {"seed": self.seeds[i]}
        if self.labels is not None:
            label = self.labels[i]
            own |= {"label": label, "class": self.system.config.classes.title(label)}
        if self.context is not None:
            own |= {"context": self.context.name, "row": i % len(self.context.rows)}
        return own

    def _blocks(self, progress: bool) -> Iterator[Tensor]:
        """All images in order, on every rank: one batch of each rank at a time."""
        own = self.batches(progress)
        size = self.batch_size * self.world.size
        for start in range(0, len(self), size):
            batch = next(own, None)
            yield self._in_order(None if batch is None else batch.images, min(size, len(self) - start))
        next(own, None)  # closes its progress bar

    def _in_order(self, own: Tensor | None, count: int) -> Tensor:
        """The next ``count`` images of all ranks, in order, from this rank's share of them; None where it has none."""
        if self.world.size == 1:
            assert own is not None
            return own
        shape = torch.tensor((0, 0, 0) if own is None else own.shape[1:])
        full = self.world.gather(shape).max(dim=0).values.tolist()
        padded = torch.zeros(-(-count // self.world.size), *full, dtype=torch.uint8)
        if own is not None:
            padded[: len(own)] = own
        return self.world.gather(padded).transpose(0, 1).reshape(-1, *full)[:count]


def generate(
    model: System | str | Path,
    seeds: Sequence[int] = range(16),
    labels: str | Sequence[int | str] | None = None,
    *,
    sampling: SamplingConfig | Mapping[str, Any] | None = None,
    quality: Level | None = None,
    context: Context | str | Path | None = None,
    batch_size: int = 64,
    device: str = "auto",
    weights: Literal["ema", "raw"] = "ema",
    engine: EngineName | None = None,
) -> Generation:
    """Images of a model, one per seed: the same seed and label give the same image in any batch and on any rank.

    Args:
        model: a run folder, a model folder, a hub id, a folder that ``udit.export`` wrote, or a loaded system.
        seeds: one per image.
        labels: class numbers or names, repeated in turn, as a list or as a text like ``"cat,dog"`` (see
            ``Classes.labels``); all classes that the model was trained on in turn if None.
        sampling: a complete setting, or the fields that differ from the model's own, e.g. ``{"steps": 20}``.
        quality: "draft", "good" or "best" in place of ``sampling``: what ``udit.tune`` found, or a default.
        context: for a model that takes vectors: the conditions, or a file of them (``read_context``).
        batch_size: images that are sampled together.
        device: auto, cpu, cuda, cuda:N or mps; a system that is given stays where it is.
        weights: "ema" (averaged) or "raw".
        engine: "torch", or the engine of the graph that ``udit.export`` put into the model's folder.

    Returns:
        The images, which are sampled when they are iterated over or saved.

    Raises:
        UserError: no such model, or labels, a setting or an engine that do not fit it.
    """
    if quality is not None and sampling is not None:
        raise UserError(f"sampling is given and quality {quality} sets it; leave one of them out")
    require_type("model", model, (System, str, Path), "give a folder, a hub id or a loaded system (udit.load)")
    seeds = seeds_of(seeds)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it counts images, at least 1")
    if isinstance(model, System):
        graph, system = None, model.fused() if not isinstance(model.backbone, Graph) else model
        world = dist.start(str(next((p.device for p in system.backbone.parameters()), "cpu")))
    else:
        graph = find_graph(model, engine)
        if graph and device not in ("auto", "cpu"):
            raise UserError(f"device is {device} and exported graphs run on the CPU; leave it out")
        world = dist.start("cpu" if graph else device)
        system = load_graph(graph, model, weights) if graph else load(model, weights=weights).fused().to(world.device)
    vectors = context if isinstance(context, Context) or context is None else read_context(Path(context))
    if quality is not None:
        chosen = qualities(None if isinstance(model, System) else Path(model), system)[quality]
    elif isinstance(sampling, SamplingConfig):
        chosen = sampling
    else:
        chosen = system.config.sampling.replace(**sampling or {})
    if isinstance(system.backbone, Graph) and (chosen.cache != 1 or chosen.refresh):
        cached = f"cache {chosen.cache}" if chosen.cache != 1 else "sampling.refresh"
        cached = f"quality {quality}" if quality else cached
        raise UserError(f"{cached} caches steps and an exported graph always runs whole; sample from the model instead")
    each = system.config.classes.each(labels, len(seeds))
    return Generation(system, seeds, each, chosen, vectors, batch_size, world)


def read_context(path: Path) -> Context:
    """The conditions in a ``.safetensors`` or ``.npz`` file.

    Args:
        path: holds ``context``, floats [N, tokens, width], and for guidance ``null``, floats [tokens, width].

    Raises:
        UserError: the file is missing, damaged, or does not hold finite floats under these names.
    """
    damaged = (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, SafetensorError)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        else:
            found = load_file(path)
    except damaged as error:
        detail = "it is not there" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
        raise UserError(f"cannot read the context {path}: {detail}; name a .safetensors or .npz file") from None
    rows, null = found.get("context"), found.get("null")
    if rows is None or rows.ndim < 2 or not len(rows):
        held = "nothing" if rows is None else f"{list(rows.shape)}"
        raise UserError(f"{path} holds {held} under 'context'; write floats [N, tokens, width], and 'null' beside them")
    for key, part in (("context", rows), ("null", null)):
        if part is not None and not (part.is_floating_point() and bool(part.isfinite().all())):
            kind = str(part.dtype).removeprefix("torch.")
            held = "with numbers that are not finite" if part.is_floating_point() else f"as {kind}"
            raise UserError(f"{path} holds {key!r} {held}; write finite floats")
    return Context(rows.float(), None if null is None else null.float(), path.name)


def qualities(folder: Path | None, system: System) -> dict[Level, SamplingConfig]:
    """The settings that were tuned for a model, or the default ones of its noising process.

    Args:
        folder: of the model, which may hold ``quality.json``; None where it has none.
        system: the model.
    """
    levels: tuple[Level, ...] = get_args(Level)
    tuned = None if folder is None else Quality.read(folder)
    if tuned is None:
        found = {level: default(level, system.config.sampling, system.config.diffusion) for level in levels}
        where = f" beside {folder}" if folder is not None else ""
        listed = ", ".join(f"{level} is {each.sampler}, {each.steps} steps" for level, each in found.items())
        logger.info("no quality.json%s: %s (`udit tune` finds better)", where, listed)
        return found
    if not system.has_weights(tuned.weights):
        logger.warning("quality.json was tuned for other weights, of step %s; run `udit tune` again", tuned.step)
    if tuned.warning:
        logger.warning("quality.json was chosen by a %s", tuned.warning)
    scored: dict[Level, Scored] = {level: getattr(tuned, level) for level in levels}
    return {level: each.sampling for level, each in scored.items()}


def _make_room(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds images already, or removes those that an earlier call wrote, before the first one.

    Which ones these are their names and text chunks say.

    Raises:
        UserError: there are images, and they were written by something else or are not to be removed.
    """
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; give a readable folder with --out") from None
    found = [entry for entry in visible if is_image(entry.name) and entry.is_file()]
    own = [entry for entry in found if _is_ours(entry)]
    if foreign := sorted(set(found) - set(own)):
        raise UserError(
            f"{folder} holds images that `udit sample` did not write, e.g. {foreign[0].name}, and a score would mix "
            "them with new ones; give another folder with --out"
        )
    if own and not overwrite:
        count = sum(entry.name != GRID for entry in own)
        raise UserError(
            f"{folder} holds {count} images of an earlier `udit sample`; give another folder with --out, or "
            "--overwrite to replace them"
        )
    for entry in own:
        entry.unlink()


def _is_ours(path: Path) -> bool:
    """Whether a file is one that ``save_pngs`` writes: by its name, and by the settings that it carries."""
    if path.name != GRID and re.fullmatch(r"\d{6,}\.png", path.name) is None:
        return False
    try:
        return not path.is_symlink() and has_settings(path)
    except OSError:
        return False


def _prepare(folder: Path) -> None:
    """Makes a folder and checks that it can be written to, before the first image is sampled."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; give a writable folder with --out") from None
