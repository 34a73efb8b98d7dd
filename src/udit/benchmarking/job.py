"""``bench``: times networks side by side and yields a row for each as soon as it is measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import torch

from udit.benchmarking import feed, measure, subjects
from udit.benchmarking.measure import Result, Work
from udit.benchmarking.meters import meter_of
from udit.diffusion.config import SamplingConfig
from udit.dist import find_device, keep_freed_memory
from udit.errors import UserError, nearest, require_list
from udit.models.catalog import find
from udit.models.config import ModelConfig
from udit.run.config import Run

WorkKind = Literal["forward", "train", "image"]
Precision = Literal["float32", "bfloat16"]


def bench(
    models: Sequence[str] | Mapping[str, ModelConfig],
    *,
    work: Sequence[WorkKind] = ("forward",),
    baselines: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    sizes: Sequence[int] = (),
    compiled: bool = False,
    recompute: bool = False,
    one_at_a_time: bool = False,
    sampling: SamplingConfig | None = None,
    rounds: int = 5,
    runs: Mapping[str, Sequence[Run]] | None = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> Iterator[Result]:
    """Times forward passes, training steps or the sampling of images, in interleaved rounds.

    Args:
        models: names of the catalogue, or configs by the name they get in the rows.
        work: "forward", "train" (a step of the hybrid loss and AdamW) or "image", any number of them.
        baselines: FILE.py:Class, diffusers:Class, equal:DiT or a name of the catalogue, as `udit bench --baseline`.
        batch_sizes: of every kind of work.
        sizes: sides of the input; each model's own size if there are none.
        compiled: also times the models with their blocks compiled.
        recompute: also times training with recomputed activations.
        one_at_a_time: keeps one network in memory and builds each again in every round.
        sampling: how images are sampled; DDIM with 20 steps if None.
        rounds: timed calls of each network, at least 1.
        runs: for each name of a model, runs whose training steps are timed on the images of their data.
        threads: torch's number of threads while it measures; unchanged if None.
        device: cpu, cuda, cuda:N, or auto. On a CUDA GPU events time, the allocator counts memory, and rows have
            the launches of kernels and the share of the time in which none ran.
        precision: "float32" or "bfloat16", by autocast as in training.

    Yields:
        A row for each network: times, FLOPs, memory, and where the time goes. ``report.markdown`` makes tables of them.

    Raises:
        UserError: an unknown model or baseline, a size that a model cannot take, another device or precision, or data
            that cannot be read.
    """
    if not isinstance(models, Mapping):
        require_list("models", models)
    require_list("work", work)
    for kind in work:
        if kind not in get_args(WorkKind):
            raise UserError(f"work has {kind!r}{nearest(str(kind), get_args(WorkKind))}")
    for count in (rounds, *batch_sizes, *sizes):
        if count < 1:
            raise UserError(f"rounds, batch_sizes and sizes are at least 1, and one of them is {count}")
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}{nearest(str(precision), get_args(Precision))}")
    place = find_device(device, 0)
    if place.type not in ("cpu", "cuda"):
        raise UserError(f"device is {place} and only a CPU and NVIDIA GPUs are measured; take cpu or cuda")
    meter = meter_of(place, precision == "bfloat16")
    configs = dict(models) if isinstance(models, Mapping) else {name: find(name).config for name in models}
    compared = {name: [subjects.baseline(word, config) for word in baselines] for name, config in configs.items()}
    chosen = sampling or SamplingConfig(sampler="ddim", steps=20)
    keep_freed_memory()  # as training does, and for every network
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with meter.ready():
            for name, config in configs.items():
                rows = [*compared[name], subjects.ours(name, config)]
                rows += [subjects.ours(name, config, compiled=True)] if compiled else []
                lean = [subjects.ours(name, config, recompute=True)] if recompute else []
                for kind in work:
                    measured = rows + lean if kind == "train" else rows
                    if kind == "train" and runs:
                        for run, subject in itertools.product(runs[name], measured):
                            yield feed.measure_on_data(subject, run, rounds, meter)
                        continue
                    extents = [(side, side) for side in sizes] or [config.size]
                    for extent, count in itertools.product(extents, batch_sizes):
                        case = Work(kind, count, extent, chosen)
                        yield from measure.compare(measured, case, rounds, one_at_a_time=one_at_a_time, meter=meter)
    finally:
        torch.set_num_threads(before)
