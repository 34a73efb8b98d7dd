"""Timing in interleaved rounds, the machine's peak in the same rounds, memory, and where the time goes."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from udit.assemble import System
from udit.benchmarking.meters import CPU, CPUMeter
from udit.benchmarking.subjects import Subject, inputs
from udit.diffusion.autocast import autocast
from udit.diffusion.config import SamplingConfig
from udit.joint import denoiser_of
from udit.nn.dropout import dropout_keys
from udit.run.system import SystemConfig


@dataclass(frozen=True)
class Work:
    """What is timed: ``forward``, ``train`` (a step of the hybrid loss and AdamW) or ``image``."""

    kind: str
    batch: int
    size: tuple[int, int]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    feed: str = ""
    """Where a training step's images come from; random ones if empty."""

    def __str__(self) -> str:
        shape = f"{self.size[0]}x{self.size[1]}, batch {self.batch}"
        if self.kind != "image":
            return f"{'training step' if self.kind == 'train' else 'forward'}, {shape}" + self.feed
        sampling = self.sampling
        return f"images, {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}, {shape}"


@dataclass
class Result:
    """The measurement of one network: a row of the tables."""

    subject: str
    work: str
    seconds: list[float]
    first_call: float
    """Seconds of the first call; for a compiled network, compilation with an empty cache included."""
    flops: int | None
    """Of one call: matrix products, convolutions, attention."""
    peak: float
    """FLOP/s of a square matrix product: the median over the same rounds."""
    peak_bytes: int
    """Weights, optimiser state, and the peak of everything else."""
    kinds: dict[str, float]
    """Share of the time per kind of work."""
    levels: dict[str, float]
    """Share of a forward's time by part of the network, in the order of the network."""
    graphs: int | None = None
    """Graphs that a compiled network's first call compiled."""
    graph_breaks: int | None = None
    """Places within them where it fell back to Python."""
    waited: float | None = None
    """Share of the time of training steps on data that was spent waiting for images."""
    launches: int | None = None
    """Kernels that a GPU ran in a call, copies included."""
    idle: float | None = None
    """Share of a call's time in which a GPU ran none of them."""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    @property
    def share_of_peak(self) -> float | None:
        """FLOP/s as a share of the matrix product's."""
        return None if self.flops is None else self.flops / self.median / self.peak


Images = Callable[[], tuple[Tensor, Tensor | None]]
"""x0 [B, C, H, W] and y [B] of the next training step."""


@dataclass(frozen=True)
class Prepared:
    """A call to time, its network, and the bytes allocated before it."""

    call: Callable[[], object]
    model: nn.Module
    resident: int


def prepare(subject: Subject, work: Work, images: Images | None = None, meter: CPUMeter = CPU) -> Prepared:
    """Builds the network and its inputs: for a training step ``images``, or the same random ones every time."""
    with meter.there():
        model = subject.training() if work.kind == "train" else subject.inference()
        arguments = inputs(subject.config, work.batch, work.size)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if work.kind == "forward":

        def forward() -> None:
            with torch.no_grad(), torch.autocast(meter.device.type, torch.bfloat16, enabled=meter.half):
                model(*arguments)

        return Prepared(forward, model, weights)
    config = SystemConfig(model=subject.config.replace(input_size=work.size))
    if work.kind == "image":
        system = System(config, model, half=meter.half)
        labels = [0] * work.batch if subject.config.num_classes else None
        how: dict[str, Any] = {"sampling": work.sampling, "batch_size": work.batch}
        if subject.config.condition_shape:
            how |= {"context": arguments[2], "null": torch.zeros_like(arguments[2][0])}

        def image() -> None:
            with torch.no_grad():
                list(system.generate(range(work.batch), labels, **how))

        return Prepared(image, model, weights)
    denoiser = denoiser_of(config, autocast(model, meter.device) if meter.half else model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x0, t, *y0 = arguments
    noise = torch.randn_like(x0)
    random: tuple[Tensor, Tensor | None] = (x0.clamp(-1, 1), y0[0] if y0 else None)

    def step() -> None:
        x0, y = images() if images else random
        with dropout_keys(model, 0, range(work.batch)):
            denoiser.schedule.loss(denoiser, x0, t, noise, y).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Prepared(step, model, 3 * weights)


def compare(
    subjects: list[Subject], work: Work, rounds: int, *, one_at_a_time: bool = False, meter: CPUMeter = CPU
) -> Iterator[Result]:
    """Times several subjects in interleaved rounds, so that other load of the machine affects all of them.

    Each round begins with another subject, since the core may be hot for the last one. With ``one_at_a_time``, one
    subject is in memory at a time and built again in every round, for those that are too large together.
    """
    kept: dict[int, Prepared] = {}
    firsts: dict[int, First] = {}

    def warm(i: int) -> Prepared:
        if i in kept:
            return kept[i]
        gc.collect()  # an earlier optimiser holds a reference to itself
        case = prepare(subjects[i], work, meter=meter)
        firsts[i] = first_call(subjects[i], case, meter)
        case.call()  # what the first call built is in the caches after the second
        if not one_at_a_time:
            kept[i] = case
        return case

    numbers = range(len(subjects))
    if not one_at_a_time:
        for i in numbers:
            warm(i)
    seconds: list[list[float]] = [[] for _ in numbers]
    peaks = []
    for r in range(rounds):
        peaks.append(meter.peak())
        for i in ((r + place) % len(subjects) for place in numbers):
            seconds[i].append(meter.timed(warm(i).call))
    for i in numbers:
        case = warm(i)
        yield result_of(subjects[i], work, case, firsts[i], seconds[i], statistics.median(peaks), meter)
        del case


@dataclass(frozen=True)
class First:
    """Seconds of a first call and, for a compiled network, the number of graphs and of graph breaks."""

    seconds: float
    graphs: int | None = None
    breaks: int | None = None


def first_call(subject: Subject, case: Prepared, meter: CPUMeter = CPU) -> First:
    """Times the first call; a compiled network is compiled with an empty cache."""
    if not subject.compiled:
        return First(meter.timed(case.call))
    from torch._dynamo.utils import counters  # takes a second to import
    from torch._inductor.utils import fresh_cache

    torch._dynamo.reset()
    counters.clear()
    with fresh_cache():
        seconds = meter.timed(case.call)
    return First(seconds, counters["stats"]["unique_graphs"], counters["graph_break"].total())


def result_of(
    subject: Subject,
    work: Work,
    case: Prepared,
    first: First,
    seconds: list[float],
    peak: float,
    meter: CPUMeter = CPU,
) -> Result:
    """The row of a subject; a few more calls measure where the time goes."""
    found = meter.dissect(case.call)
    flops = None if work.kind == "image" else subject.flops(work.batch, work.size, work.kind == "train")
    levels = {} if subject.compiled or work.kind != "forward" else parts(case, meter)
    return Result(
        subject=subject.name,
        work=str(work),
        seconds=seconds,
        first_call=first.seconds,
        flops=flops,
        peak=peak,
        peak_bytes=case.resident + found.extra,
        kinds=found.kinds,
        levels=levels,
        graphs=first.graphs,
        graph_breaks=first.breaks,
        launches=found.launches,
        idle=None if found.busy is None else max(0.0, 1 - found.busy / statistics.median(seconds)),
    )


def parts(case: Prepared, meter: CPUMeter = CPU) -> dict[str, float]:
    """Shares of a call's time by the network's children; those in a list are listed separately."""
    spans: dict[str, list[tuple[Any, Any]]] = {}
    with contextlib.ExitStack() as hooks:
        for name, child in case.model.named_children():
            stages: dict[str, nn.Module] = {name: child}
            if isinstance(child, nn.ModuleList) and any(
                isinstance(part, nn.ModuleList) for part in child[0].children()
            ):
                stages = {f"{name}.{i}": part for i, part in enumerate(child)}
            for label, stage in stages.items():
                for module in stage if isinstance(stage, nn.ModuleList) else [stage]:
                    _clock(module, spans.setdefault(label, []), meter, hooks)
        total = meter.timed(case.call)
    return {name: sum(meter.between(*span) for span in of) / total for name, of in spans.items() if of}


def _clock(module: nn.Module, spans: list[tuple[Any, Any]], meter: CPUMeter, hooks: contextlib.ExitStack) -> None:
    began: list[Any] = []
    before = module.register_forward_pre_hook(lambda *_: began.append(meter.mark()))
    after = module.register_forward_hook(lambda *_: spans.append((began.pop(), meter.mark())))
    hooks.callback(before.remove)
    hooks.callback(after.remove)
