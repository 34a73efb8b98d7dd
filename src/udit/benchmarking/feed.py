"""Training steps on real pictures, read as a run's trainer reads them, and the time it waits for them."""

from __future__ import annotations

import contextlib
import dataclasses
import time

from torch import Tensor

from udit.benchmarking.measure import Result, Work, first_call, matmul_peak, prepare, timed, told
from udit.benchmarking.subjects import Subject
from udit.data.sources import parts_of
from udit.run.config import Run
from udit.training.batches import batches_of


def fed(subject: Subject, run: Run, rounds: int) -> Result:
    """Times training steps one after another: a loader would catch up in the pauses of interleaved rounds.

    Args:
        subject: the network, of the run's model.
        run: names data, codec, batch size and reading processes.
        rounds: steps that are timed, after those whose pictures may have been read before the first one began.

    Raises:
        UserError: pictures that cannot be read.
    """
    config, source, codec = run.training, run.source(), run.codec.build()
    feed = f", pictures of {run.name}, {config.workers} reading process{'es' * (config.workers != 1)}"
    work = Work("train", config.batch_size, run.model.size, feed=feed)
    waits: list[float] = []
    peak = matmul_peak()
    with contextlib.closing(batches_of(run, source, parts_of(source, run.data).train)) as stream:

        def pictures() -> tuple[Tensor, Tensor | None]:
            asked = time.perf_counter()
            [batch] = next(stream)
            waits.append(time.perf_counter() - asked)
            raw = batch.x if run.latents else codec.raw(batch.x)
            x0 = codec.normalise(raw, [(run.seed, position) for position in batch.positions])
            return x0, batch.y if run.model.num_classes else None

        case = prepare(subject, work, pictures)
        first = first_call(subject, case)
        for _ in range(1 + 2 * config.workers):
            case.call()
        seconds = [timed(case.call) for _ in range(rounds)]
        waited = sum(waits[-rounds:]) / sum(seconds)
        return dataclasses.replace(told(subject, work, case, first, seconds, peak), waited=waited)
