"""Timing in interleaved rounds, the machine's peak in the same rounds, memory, and where the time goes."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from udit.assemble import System, denoiser_of
from udit.benchmarking.subjects import Subject, inputs
from udit.diffusion.config import SamplingConfig
from udit.nn.dropout import dropout_keys
from udit.run.system import SystemConfig

PEAK_SIDE = 1536
KINDS: Mapping[str, tuple[str, ...]] = {
    "depthwise convolution": ("udit::depthwise", "udit::depthwise_weights"),
    "attention": (
        *("udit::grid_attention", "aten::_scaled_dot_product"),
        *("aten::bmm", "aten::baddbmm", "aten::softmax", "aten::_softmax"),
    ),
    "matrix product": (
        "udit::linear",
        "udit::convolution",
        "aten::addmm",
        "aten::mm",
        "aten::mkldnn",
        "aten::convolution",
        "aten::_slow_conv2d",
    ),
    "normalisation and modulation": (
        *("udit::modulated_norm", "udit::gated_sum"),
        *("aten::native_layer_norm", "aten::native_group_norm", "aten::linalg_vector_norm", "aten::norm"),
        *("aten::addcmul", "aten::mul", "aten::add", "aten::div", "aten::sum", "aten::gelu", "aten::silu"),
    ),
    "data movement": (
        *("aten::copy_", "aten::cat", "aten::flip", "aten::clone", "aten::contiguous", "aten::pixel_", "aten::fill_"),
        *("aten::constant_pad_nd", "aten::zero_", "aten::channel_shuffle"),
    ),
    "optimiser": ("aten::_fused_adamw", "Optimizer"),
}
"""Kind of work -> prefixes of operator names; all others count as "other"."""


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


def prepare(subject: Subject, work: Work, images: Images | None = None) -> Prepared:
    """Builds the network and its inputs: for a training step ``images``, or the same random ones every time."""
    model = subject.training() if work.kind == "train" else subject.inference()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    arguments = inputs(subject.config, work.batch, work.size)
    if work.kind == "forward":

        def forward() -> None:
            with torch.no_grad():
                model(*arguments)

        return Prepared(forward, model, weights)
    config = SystemConfig(model=subject.config.replace(input_size=work.size))
    if work.kind == "image":
        system, labels = System(config, model), [0] * work.batch if subject.config.num_classes else None
        how: dict[str, Any] = {"sampling": work.sampling, "batch_size": work.batch}
        if subject.config.condition_shape:
            how |= {"context": arguments[2], "null": torch.zeros_like(arguments[2][0])}

        def image() -> None:
            with torch.no_grad():
                list(system.generate(range(work.batch), labels, **how))

        return Prepared(image, model, weights)
    denoiser = denoiser_of(config, model)
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


def matmul_peak(repeats: int = 2) -> float:
    """FLOP/s of a product of two square matrices, the best of several."""
    a, b = torch.randn(2, PEAK_SIDE, PEAK_SIDE)
    return 2 * PEAK_SIDE**3 / min(timed(lambda: a @ b) for _ in range(repeats + 1))


def compare(subjects: list[Subject], work: Work, rounds: int, *, one_at_a_time: bool = False) -> Iterator[Result]:
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
        case = prepare(subjects[i], work)
        firsts[i] = first_call(subjects[i], case)
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
        peaks.append(matmul_peak())
        for i in ((r + place) % len(subjects) for place in numbers):
            seconds[i].append(timed(warm(i).call))
    for i in numbers:
        case = warm(i)
        yield result_of(subjects[i], work, case, firsts[i], seconds[i], statistics.median(peaks))
        del case


@dataclass(frozen=True)
class First:
    """Seconds of a first call and, for a compiled network, the number of graphs and of graph breaks."""

    seconds: float
    graphs: int | None = None
    breaks: int | None = None


def first_call(subject: Subject, case: Prepared) -> First:
    """Times the first call; a compiled network is compiled with an empty cache."""
    if not subject.compiled:
        return First(timed(case.call))
    from torch._dynamo.utils import counters  # takes a second to import
    from torch._inductor.utils import fresh_cache

    torch._dynamo.reset()
    counters.clear()
    with fresh_cache():
        seconds = timed(case.call)
    return First(seconds, counters["stats"]["unique_graphs"], counters["graph_break"].total())


def result_of(subject: Subject, work: Work, case: Prepared, first: First, seconds: list[float], peak: float) -> Result:
    """The row of a subject; two more calls measure where the time goes."""
    kinds, extra = dissect(case.call)
    flops = None if work.kind == "image" else subject.flops(work.batch, work.size, work.kind == "train")
    levels = {} if subject.compiled or work.kind != "forward" else parts(case)
    return Result(
        subject=subject.name,
        work=str(work),
        seconds=seconds,
        first_call=first.seconds,
        flops=flops,
        peak=peak,
        peak_bytes=case.resident + extra,
        kinds=kinds,
        levels=levels,
        graphs=first.graphs,
        graph_breaks=first.breaks,
    )


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def kind_of(operator: str, shapes: list[list[int]]) -> str:
    """Kind of work of an operator; a depthwise convolution is recognised by its weight's shape."""
    operator = operator.replace("GeneratedBackwardFor_udit_", "udit::")  # a kernel of ours, called under autograd
    if "conv" in operator and not operator.startswith("udit"):
        weights = [s for s in shapes if len(s) == 4 and s[1] == 1 and s[0] > 1]
        if weights and any(len(s) == 4 and s[1] == weights[0][0] for s in shapes):
            return "depthwise convolution"
    return next((kind for kind, names in KINDS.items() if operator.startswith(names)), "other")


def dissect(call: Callable[[], object]) -> tuple[dict[str, float], int]:
    """Shares of time by kind of work, and the peak of bytes allocated during the call."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read at the first profile, which else reports its start and stop
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=True) as trace:
        call()
    spent: dict[str, float] = defaultdict(float)
    live, most = 0, 0
    for event in sorted(trace.events(), key=lambda event: event.time_range.start):
        spent[kind_of(event.name, event.input_shapes or [])] += event.self_cpu_time_total
        live += event.self_cpu_memory_usage
        most = max(most, live)
    total = sum(spent.values())
    return {kind: spent[kind] / total for kind in (*KINDS, "other") if spent[kind]}, most


def parts(case: Prepared) -> dict[str, float]:
    """Shares of a call's time by the network's children; those in a list are listed separately."""
    spent: dict[str, float] = {}
    with contextlib.ExitStack() as hooks:
        for name, child in case.model.named_children():
            stages: dict[str, nn.Module] = {name: child}
            if isinstance(child, nn.ModuleList) and any(
                isinstance(part, nn.ModuleList) for part in child[0].children()
            ):
                stages = {f"{name}.{i}": part for i, part in enumerate(child)}
            for label, stage in stages.items():
                for module in stage if isinstance(stage, nn.ModuleList) else [stage]:
                    _clock(module, label, spent, hooks)
        total = timed(case.call)
    return {name: seconds / total for name, seconds in spent.items()}


def _clock(module: nn.Module, label: str, spent: dict[str, float], hooks: contextlib.ExitStack) -> None:
    began: list[float] = []
    before = module.register_forward_pre_hook(lambda *_: began.append(time.perf_counter()))

    def stop(*_: object) -> None:
        spent[label] = spent.get(label, 0.0) + time.perf_counter() - began.pop()

    hooks.callback(before.remove)
    hooks.callback(module.register_forward_hook(stop).remove)
