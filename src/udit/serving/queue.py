"""Requests that wait, and the batches that are made of them; free of torch, of HTTP and of threads.

Batches are made when the worker is free: the oldest request decides the setting, and images of the same setting follow
in the order of their requests. So no request waits for a batch to fill, and none is overtaken for ever.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from udit.diffusion.config import SamplingConfig
from udit.serving.limits import Refusal


@dataclass(frozen=True)
class Order:
    """A request that has been checked: the images that are wanted."""

    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    """One per image, or None for a model without classes."""
    sampling: SamplingConfig
    """Complete."""
    prompt: str | None = None
    """Of all images; None for a model that takes no texts."""
    negative: str = ""
    """What guidance compares with in place of the empty prompt."""

    @property
    def kind(self) -> str:
        """Images of one kind can share a batch: they have the same setting and negative prompt, and labels or none."""
        return f"{self.sampling.model_dump_json()} {self.labels is None} {self.negative}"


@dataclass(frozen=True)
class Drawn:
    """One image."""

    pixels: bytes
    """uint8, C x H x W."""
    shape: tuple[int, int, int]
    """(C, H, W)."""
    settings: dict[str, Any]
    """What it depends on, as PNGs carry it."""


@dataclass(eq=False)
class Job:
    """An accepted request on its way."""

    order: Order
    deadline: float
    """On the monotonic clock."""
    future: Future[list[Drawn]] = field(default_factory=Future)
    drawn: dict[int, Drawn] = field(default_factory=dict)
    """Finished images, by their number within the request."""
    asked: int = 0
    """Images that have been put into a batch."""
    lost: int = 0
    """Times that a worker process ended while it drew this request."""
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = self.order.kind

    @property
    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()

    def put(self, number: int, image: Drawn) -> None:
        """Takes a finished image; the last one answers the request."""
        self.drawn[number] = image
        if len(self.drawn) == len(self.order.seeds) and not self.done:
            self.future.set_result([self.drawn[i] for i in range(len(self.drawn))])

    def refuse(self, refusal: Refusal) -> None:
        """Answers it with an error, unless it is answered already."""
        if not self.done:
            self.future.set_exception(refusal)


@dataclass(frozen=True)
class Batch:
    """Images of one kind that are sampled together."""

    number: int
    parts: Sequence[tuple[Job, int]]
    """The request and the number within it of each image."""

    @property
    def jobs(self) -> list[Job]:
        """The requests, each once."""
        return list(dict.fromkeys(job for job, _ in self.parts))

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for an image of it."""
        return any(not job.done for job in self.jobs)

    @property
    def sampling(self) -> SamplingConfig:
        """The setting of all images."""
        return self.parts[0][0].order.sampling

    @property
    def seeds(self) -> list[int]:
        """Of each image."""
        return [job.order.seeds[i] for job, i in self.parts]

    @property
    def prompts(self) -> list[str] | None:
        """Of each image; None for a model that takes no texts."""
        found = [job.order.prompt for job, _ in self.parts if job.order.prompt is not None]
        return found or None

    @property
    def negative(self) -> str:
        """Of all images."""
        return self.parts[0][0].order.negative

    @property
    def labels(self) -> list[int] | None:
        """Of each image; None for a model without classes."""
        found = [job.order.labels[i] for job, i in self.parts if job.order.labels is not None]
        return found or None


class Queue:
    """Requests in the order in which they came."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._numbers: Iterator[int] = itertools.count(1)

    def __len__(self) -> int:
        """Requests of which an image is still to be put into a batch."""
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Puts a request last."""
        self._jobs.append(job)

    def restore(self, batch: Batch) -> None:
        """Puts back what a lost worker process was drawing, first and in its old order."""
        back = [job for job in batch.jobs if not job.done]
        for job in back:
            job.asked = min(i for j, i in batch.parts if j is job)
        self._jobs = back + [job for job in self._jobs if job not in back]

    def drop_done(self) -> None:
        """Leaves out requests that nobody waits for."""
        self._jobs = [job for job in self._jobs if not job.done]

    def take(self, most: int) -> Batch | None:
        """The next batch of at most ``most`` images; None where nothing waits.

        A request that a lost worker process was drawing has batches of its own, so that if it is the cause, it alone
        is lost.
        """
        self.drop_done()
        if not self._jobs:
            return None
        first = self._jobs[0]
        parts: list[tuple[Job, int]] = []
        for job in self._jobs:
            if job is not first and (first.lost or job.lost or job.kind != first.kind):
                continue
            count = min(most - len(parts), len(job.order.seeds) - job.asked)
            parts += [(job, i) for i in range(job.asked, job.asked + count)]
            job.asked += count
            if len(parts) == most:
                break
        self._jobs = [job for job in self._jobs if job.asked < len(job.order.seeds)]
        return Batch(next(self._numbers), parts)

    def take_all(self) -> list[Job]:
        """Every request, which leaves the queue."""
        jobs, self._jobs = self._jobs, []
        return jobs
