"""The batches of a run."""

from __future__ import annotations

from udit.data.batches import Batches, batches
from udit.data.sources import Labels, Source
from udit.run.config import Run


def batches_of(run: Run, source: Source, part: Labels, start: int = 0, rank: int = 0, world: int = 1) -> Batches:
    """``batches`` of all remaining steps of a run."""
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
    )
