"""The batches of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from udit.data.batches import Batches, batches
from udit.data.codec import posterior_noise
from udit.data.codec_config import VAECodec
from udit.data.sources import Labels, Source
from udit.diffusion.objective import Objective
from udit.diffusion.schedule import Schedule
from udit.joint import objective_of
from udit.nn.dropout import keys_of
from udit.run.config import Run

READ = 2**18
"""Bytes that a worker may read at a time, of several small micro-batches."""


@dataclass(frozen=True)
class Drawing:
    """Draws all random numbers of a batch by its positions in the run, in the process that reads its images.

    Attributes:
        objective: of the run.
        schedule: decides the times.
        shape: (c, h, w) of what the network sees, (c, f, h, w) of clips.
        sizes: {(height, width) of what is read: (h, w) of what the network sees}, where images have several.
        posterior: whether latents are drawn from a VAE's posterior.
    """

    objective: Objective
    schedule: Schedule
    shape: tuple[int, ...]
    sizes: dict[tuple[int, int], tuple[int, int]]
    posterior: bool

    def __call__(self, positions: Sequence[int], read: tuple[int, int]) -> dict[str, Tensor]:
        """What ``Learner.losses`` would draw itself, by the same names and of the same bits.

        Args:
            positions: of the batch's images in the run.
            read: their height and width.
        """
        seed, shape = self.objective.seed, (*self.shape[:-2], *self.sizes.get(read, self.shape[-2:]))
        schedule = self.schedule.at_step(positions[0] // self.objective.batch_size)
        draws = self.objective.draws(schedule, shape, positions)
        drawn = {"t": draws.t, "noise": draws.noise, "uniform": draws.uniform, "dropout": keys_of(seed, positions)}
        if self.posterior:
            drawn["posterior"] = posterior_noise(shape, [(seed, position) for position in positions])
        return drawn


def drawing_of(run: Run) -> Drawing:
    """What draws a run's random numbers."""
    shape = run.model.input_shape()
    codec = run.codec
    posterior = isinstance(codec, VAECodec) and codec.has_posterior and codec.posterior == "sample"
    sizes = dict(zip(run.sizes if run.encoded else run.data.shapes, run.sizes, strict=False))
    return Drawing(objective_of(run), run.diffusion.build(), shape, sizes, posterior)


def together(run: Run) -> int:
    """How many micro-batches a worker reads at a time: up to ``READ`` bytes.

    An image comes with noise, and may come with the state before or with a posterior's noise: at most four float32
    numbers for each that the network sees. One where images are larger than that, or come with features.
    """
    if run.training.align is not None or (isinstance(run.codec, VAECodec) and not run.encoded):
        return 1
    images = run.training.batch_size // run.training.accumulation
    return max(1, READ // (16 * math.prod(run.model.input_shape()) * max(1, images)))


def batches_of(
    run: Run, source: Source, part: Labels, start: int = 0, rank: int = 0, world: int = 1, pin: bool = False
) -> Batches:
    """``batches`` of all remaining steps of a run, with what is drawn for them; ``pin`` for a CUDA GPU."""
    return batches(
        source,
        part,
        seed=run.seed,
        start=start,
        stop=run.training.steps,
        global_batch=run.training.batch_size,
        rank=rank,
        world=world,
        accumulation=run.training.accumulation,
        flip=run.data.mirrored,
        features=run.training.align is not None,
        workers=run.training.workers,
        together=together(run),
        draw=drawing_of(run),
        pin=pin,
    )
