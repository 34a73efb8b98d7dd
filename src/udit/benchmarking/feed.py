"""Training steps on a run's images, read as its trainer reads them, and the time spent waiting for them."""

from __future__ import annotations

import contextlib
import dataclasses
import time

import torch
from torch import Tensor

from udit.benchmarking.measure import Result, Work, first_call, prepare, result_of
from udit.benchmarking.meters import CPU, CPUMeter
from udit.benchmarking.subjects import Subject
from udit.data.buckets import of_first_shape
from udit.data.sources import parts_of
from udit.run.config import Run
from udit.training.batches import batches_of, together


def measure_on_data(subject: Subject, run: Run, rounds: int, meter: CPUMeter = CPU) -> Result:
    """Times consecutive training steps: a loader would catch up in the pauses of interleaved rounds.

    Args:
        subject: the network, of the run's model.
        run: names data, codec, batch size and reading processes.
        rounds: steps that are timed at least, after those whose images may have been read ahead.
        meter: of the device that trains.

    Raises:
        UserError: an image cannot be read.
    """
    config, source, codec = run.training, run.source(), run.codec.build()
    feed = f", images of {run.name}, {config.workers} reading process{'es' * (config.workers != 1)}"
    work = Work("train", config.batch_size, run.model.size, feed=feed)
    waits: list[float] = []
    peak = meter.peak()
    with contextlib.closing(
        batches_of(run, source, of_first_shape(source, parts_of(source, run.data).train))
    ) as stream:

        def images() -> tuple[Tensor, Tensor | None]:
            asked = time.perf_counter()
            [batch] = next(stream)
            waits.append(time.perf_counter() - asked)
            batch = batch.on(meter.device)
            raw = batch.x if run.encoded else codec.raw(batch.x)
            x0 = codec.normalise(raw, [(run.seed, position) for position in batch.positions])
            if shape := run.model.condition_shape:  # of captions: random ones cost the same
                return x0, torch.randn(len(x0), *shape, device=x0.device)
            return x0, batch.y if run.model.num_classes else None

        case = prepare(subject, work, images, meter)
        first = first_call(subject, case, meter)
        group = together(run) if config.workers else 1  # batches that a worker sends at a time
        for _ in range(group * (1 + 2 * config.workers)):
            case.call()
        seconds = [meter.timed(case.call) for _ in range(-(-rounds // group) * group)]
        waited = sum(waits[-len(seconds) :]) / sum(seconds)
        return dataclasses.replace(result_of(subject, work, case, first, seconds, peak, meter), waited=waited)
