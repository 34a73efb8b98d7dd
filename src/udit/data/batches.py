"""The batches of a run: the same images in the same step for any number of ranks, workers and accumulated parts."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from udit import rng
from udit.data.buckets import buckets_of
from udit.data.captions import captions_of
from udit.data.fields import FieldSource
from udit.data.latents import LatentCache
from udit.data.order import BucketOrder, Order, crops, flips
from udit.data.parcel import Parcel
from udit.data.sources import Labels, RawSource, Source, cropper, crops_of
from udit.errors import RunError, UserError


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    x: Tensor
    """uint8 [B, C, H, W], of clips [B, C, F, H, W], float32 fields or where 16 bits are kept, or raw latents
    [B, c, h, w] of a cache"""
    y: Tensor
    """int64 [B]"""
    ids: list[int]
    """Indices into the source."""
    positions: list[int]
    """Positions in the run's stream of images: the keys of everything drawn for each image."""
    texts: list[str] = field(default_factory=list)
    """A caption of each image; none where the source has none."""
    before: Tensor | None = None
    """The states before, float32 [B, C, H, W], of a source that has them."""
    features: Tensor | None = None
    """A vision model's, float16 [B, Z, h, w], where they are asked for."""
    drawn: dict[str, Tensor] = field(default_factory=dict)
    """Random numbers of these positions, where they were drawn along with reading: each [B, ...]."""

    def pin_memory(self) -> Batch:
        """The same in memory from which a GPU copies while the host goes on."""
        return self.mapped(Tensor.pin_memory)

    def on(self, device: torch.device) -> Batch:
        """The same on a device; from pinned memory the host does not wait for the copy."""
        return self.mapped(lambda x: x.to(device, non_blocking=True)) if device.type != "cpu" else self

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with each of its tensors changed."""
        drawn = {name: change(x) for name, x in self.drawn.items()}
        before, features = (None if x is None else change(x) for x in (self.before, self.features))
        return replace(self, x=change(self.x), y=change(self.y), before=before, features=features, drawn=drawn)

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        found = [self.x, self.y, self.before, self.features, *(self.drawn[name] for name in sorted(self.drawn))]
        return [x for x in found if x is not None]


DRAWN = "drawn/"
"""How names of what was drawn begin in a parcel."""


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch on its way from the process that has read it."""

    ids: list[int]
    positions: list[int]
    texts: list[str]
    parcel: Parcel

    @staticmethod
    def of(batch: Batch) -> PackedBatch:
        """A batch, packed."""
        named = {"x": batch.x, "y": batch.y, "before": batch.before, "features": batch.features}
        drawn = {f"{DRAWN}{name}": x for name, x in batch.drawn.items()}
        parcel = Parcel({name: x for name, x in named.items() if x is not None} | drawn)
        return PackedBatch(batch.ids, batch.positions, batch.texts, parcel)

    def unpacked(self, pin: bool = False) -> Batch:
        """The batch; ``pin`` for pinned memory."""
        found = self.parcel.tensors(pin)
        drawn = {name.removeprefix(DRAWN): x for name, x in found.items() if name.startswith(DRAWN)}
        before, features = found.get("before"), found.get("features")
        return Batch(found["x"], found["y"], self.ids, self.positions, self.texts, before, features, drawn)

    def pin_memory(self) -> Batch:
        """The batch in pinned memory: what the thread of a ``DataLoader`` asks for that pins."""
        return self.unpacked(pin=True)


Draw = Callable[[Sequence[int], tuple[int, int]], dict[str, Tensor]]
"""From positions, and height and width of their images as they are read, to what is drawn for them, each [B, ...]."""
Batches = Generator[list[Batch]]
"""The micro-batches of step after step; closing it ends the workers."""


def batches(
    source: Source,
    part: Labels,
    *,
    seed: int,
    start: int,
    stop: int,
    global_batch: int,
    rank: int = 0,
    world: int = 1,
    accumulation: int = 1,
    flip: bool = False,
    features: bool = False,
    workers: int = 0,
    together: int = 1,
    draw: Draw | None = None,
    pin: bool = False,
) -> Batches:
    """One rank's micro-batches of every step.

    Args:
        source: the images.
        part: indices of the images to train on.
        seed: the run's.
        start: the first step.
        stop: one past the last step.
        global_batch: images per step over all ranks and micro-batches.
        rank: this process's number.
        world: number of processes.
        accumulation: micro-batches per step on each rank.
        flip: mirror half of the images left to right.
        features: read a vision model's features too, of a latent cache that has them.
        workers: processes that read ahead; 0 reads in the calling process.
        together: micro-batches that a worker reads at a time. Each message to and from a worker takes the trainer about
            a millisecond, in which it waits for a thread that sends the next job; small steps are not much longer.
        draw: makes each batch's ``drawn``, where its images are read.
        pin: batches lie in pinned memory.

    Yields:
        ``accumulation`` batches for each step. Step s takes positions s * global_batch and on, micro-batch by
        micro-batch and, within one, rank by rank. Of images of several shapes those of a step have one.

    Raises:
        UserError: a batch that does not split evenly, no images, or an image that cannot be decoded.
        RunError: a worker died.
    """
    size = share_of(global_batch, accumulation, world)
    reader = _Reader(source, part, seed, flip, features, draw)
    order = order_of(source, part, seed, global_batch)
    jobs = _Jobs(order, range(start, stop), global_batch, size, rank, world, accumulation)
    steps = _steps(reader, jobs, workers, together, pin)
    if workers:
        # else multiprocessing's exit handler would send SIGTERM, which workers ignore, and wait for them for ever
        alive = weakref.ref(steps)
        atexit.register(lambda: steps.close() if (steps := alive()) else None)
    return steps


def order_of(source: Source, part: Labels, seed: int, global_batch: int) -> Order | BucketOrder:
    """The order of the images of a part: of images of several shapes, those of a step have one.

    Raises:
        UserError: there are no images.
    """
    buckets = buckets_of(source)
    if buckets is None or not len(part):
        return Order(len(part), seed)
    return BucketOrder([places for _, places in buckets.members(part)], seed, global_batch)


def share_of(global_batch: int, accumulation: int, world: int) -> int:
    """Images in one micro-batch of one of ``world`` ranks.

    Raises:
        UserError: the batch does not split evenly.
    """
    size, rest = divmod(global_batch, accumulation * world)
    if rest or not size:
        raise UserError(
            f"training.batch_size {global_batch} does not split over {world} ranks times {accumulation} accumulated "
            f"parts; choose a multiple of {accumulation * world}"
        )
    return size


@dataclass(frozen=True)
class _Jobs:
    """What to read, in order: (position, index into the part) for each image of each micro-batch."""

    order: Order | BucketOrder
    steps: range
    global_batch: int
    size: int
    rank: int
    world: int
    accumulation: int

    def __iter__(self) -> Iterator[Job]:
        for step in self.steps:
            for micro in range(self.accumulation):
                first = step * self.global_batch + (micro * self.world + self.rank) * self.size
                yield [(position, self.order[position]) for position in range(first, first + self.size)]


Job = list[tuple[int, int]]
"""Position, and index into the part, of each image of a micro-batch."""


class _Reader(Dataset["list[Batch | UserError]"]):
    """Reads micro-batches, in the calling process or in a worker."""

    def __init__(self, source: Source, part: Labels, seed: int, flip: bool, features: bool, draw: Draw | None) -> None:
        self.source = source
        self.part = part
        self.seed = seed
        self.flip = flip
        self.features = features
        self.draw = draw

    def __getitem__(self, jobs: list[Job]) -> list[Batch | UserError]:
        """Several micro-batches, up to the first that cannot be read."""
        read: list[Batch | UserError] = []
        for job in jobs:
            read.append(self.read(job))
            if isinstance(read[-1], UserError):
                break
        return read

    def read(self, job: Job) -> Batch | UserError:
        """A micro-batch, or why it cannot be read."""
        positions = [position for position, _ in job]
        ids = [int(self.part[place]) for _, place in job]
        mirrored = flips(self.seed, positions) if self.flip else [False] * len(ids)
        try:
            cropped = crops(crops_of(self.source), self.seed, positions)
            x, features = self._read(ids, mirrored, cropped), self._features(ids, mirrored, cropped)
            before = states_before(self.source, ids)
        except UserError as error:
            # as a value: an exception from a worker would be wrapped in its traceback
            return error
        height, width = x.shape[-2:]
        drawn = self.draw(positions, (height, width)) if self.draw else {}
        y, texts = torch.from_numpy(self.source.labels[ids]), self._texts(ids, positions)
        return Batch(torch.from_numpy(x), y, ids, positions, texts, before, features, drawn)

    def _texts(self, ids: Sequence[int], positions: Sequence[int]) -> list[str]:
        """One of the captions of each image, by its position in the run."""
        captions = captions_of(self.source)
        if captions is None:
            return []
        keys = (rng.key(self.seed, "caption", position) for position in positions)
        return [captions.chosen(i, key) for i, key in zip(ids, keys, strict=True)]

    def _read(self, ids: list[int], mirrored: list[bool], cropped: list[int]) -> NDArray[Any]:
        if isinstance(self.source, RawSource):
            return np.stack([self.source.read(*which) for which in zip(ids, mirrored, cropped, strict=True)])
        x = np.stack(list(map(cropper(self.source), ids, cropped)))
        x[mirrored] = x[mirrored][..., ::-1]
        return x

    def _features(self, ids: list[int], mirrored: list[bool], cropped: list[int]) -> Tensor | None:
        if not self.features:
            return None
        assert isinstance(self.source, LatentCache), "a vision model's features are in a latent cache"
        found = [self.source.features(*which) for which in zip(ids, mirrored, cropped, strict=True)]
        return torch.from_numpy(np.stack(found))


def states_before(source: Source, ids: Sequence[int]) -> Tensor | None:
    """The states before those of a source, float32 [B, C, H, W]; None of a source without an order in time."""
    if not isinstance(source, FieldSource) or source.before is None:
        return None
    return torch.from_numpy(source.fields[source.before[ids]])


def _steps(reader: _Reader, jobs: _Jobs, workers: int, together: int, pin: bool) -> Batches:
    grouped = _Grouped(jobs, together if workers else 1)
    groups: Any = iter(_loader(reader, grouped, workers, pin)) if workers else map(reader.__getitem__, grouped)
    read = _one_by_one(groups)
    try:
        for _ in jobs.steps:
            micro_batches = [next(read) for _ in range(jobs.accumulation)]
            yield [batch.pin_memory() for batch in micro_batches] if pin and not workers else micro_batches
    finally:
        if workers:
            # not left to the garbage collector: an error's traceback would keep the workers, and exit waits for them
            groups._shutdown_workers()


def _one_by_one(groups: Iterator[Sequence[Batch | PackedBatch | UserError]]) -> Iterator[Batch]:
    while True:
        try:
            group = next(groups, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RunError(f"a process that reads images died ({error}); lower training.workers") from None
        if group is None:
            return
        for batch in group:
            if isinstance(batch, UserError):
                raise batch
            yield batch.unpacked() if isinstance(batch, PackedBatch) else batch


def _loader(reader: _Reader, jobs: _Grouped, workers: int, pin: bool) -> DataLoader[list[Batch | UserError]]:
    # of more workers than cores: readers mostly wait for the trainer
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    return DataLoader(
        reader,
        batch_size=None,  # a group is what a worker reads at a time
        sampler=jobs,
        collate_fn=_packed,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=partial(_begin_reading, os.getpid()),
        # forked workers share the memory of decoded images
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )


@dataclass(frozen=True)
class _Grouped:
    """Jobs, several at a time."""

    jobs: _Jobs
    size: int

    def __iter__(self) -> Iterator[list[Job]]:
        jobs = iter(self.jobs)
        while group := list(itertools.islice(jobs, self.size)):
            yield group


def _packed(group: list[Batch | UserError]) -> list[PackedBatch | UserError]:
    return [PackedBatch.of(read) if isinstance(read, Batch) else read for read in group]


def _begin_reading(trainer: int, _worker: int) -> None:
    """A worker ends with its trainer, and with nothing else.

    A signal to the whole process group must not end the workers of a trainer that is about to save. Of a trainer that
    was killed they would stay: what they have read fills a pipe, and they wait for it to be taken.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()


def _end_with(trainer: int) -> None:
    while os.getppid() == trainer:
        time.sleep(1)
    os._exit(1)
