"""How a device is measured: its clock, its own speed, its memory and its kernels."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from udit.run.config import TrainingConfig
from udit.training.precision import set_up

Call = Callable[[], object]
KINDS: Mapping[str, tuple[str, ...]] = {
    "depthwise convolution": ("udit::depthwise", "udit::depthwise_weights", "aten::_conv_depthwise2d"),
    "attention": (
        *("udit::grid_attention", "aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention"),
        *("aten::_cudnn_attention", "aten::bmm", "aten::baddbmm", "aten::softmax", "aten::_softmax"),
    ),
    "matrix product": (
        "udit::linear",
        "udit::convolution",
        "aten::addmm",
        "aten::mm",
        "aten::mkldnn",
        "aten::cudnn_convolution",
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
    "kernels of the compiler": ("triton_",),
    "optimiser": ("aten::_fused_adamw", "Optimizer"),
}
"""Kind of work -> prefixes of operator names; all others count as "other"."""


@dataclass(frozen=True)
class Dissected:
    """Where a call's time goes, and what it needs beside what was there before."""

    kinds: dict[str, float]
    """Share of the time per kind of work."""
    extra: int
    """The peak of bytes allocated during the call."""
    launches: int | None = None
    """Kernels that a GPU ran, copies included."""
    busy: float | None = None
    """Seconds in which a GPU ran kernels."""


@dataclass(frozen=True)
class CPUMeter:
    """Measures calls on the CPU."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    half: bool = False
    """Whether networks compute in bfloat16."""
    side = 1536
    """Of the square matrices whose product is the device's own speed."""

    def mark(self) -> Any:
        """A moment between what was asked of the device before and after."""
        return time.perf_counter()

    def wait(self) -> None:
        """Returns once the device has done all that it was asked."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks, after ``wait``."""
        seconds: float = last - first
        return seconds

    def timed(self, call: Call) -> float:
        """Seconds of a call, until the device is done."""
        self.wait()
        first = self.mark()
        call()
        last = self.mark()
        self.wait()
        return self.between(first, last)

    def peak(self, repeats: int = 2) -> float:
        """FLOP/s of a product of two square matrices, the best of several."""
        dtype = torch.bfloat16 if self.half else torch.float32
        a, b = torch.randn(2, self.side, self.side, device=self.device, dtype=dtype)
        return 2 * self.side**3 / min(self.timed(lambda: a @ b) for _ in range(repeats + 1))

    def dissect(self, call: Call) -> Dissected:
        """Calls once more, within torch's profiler."""
        spent: dict[str, float] = defaultdict(float)
        live, most = 0, 0
        for event in _profiled([ProfilerActivity.CPU], call):
            spent[kind_of(event.name, event.input_shapes or [])] += event.self_cpu_time_total
            live += event.self_cpu_memory_usage
            most = max(most, live)
        return Dissected(_shares(spent), most)

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """Context of all measurements."""
        return contextlib.nullcontext()

    def there(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which networks and tensors are made on the device."""
        return contextlib.nullcontext()


class CUDAMeter(CPUMeter):
    """Measures calls on an NVIDIA GPU, by events in its stream and by the allocator's own count of bytes."""

    side = 8192

    def mark(self) -> Any:
        """An event in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Synchronises."""
        torch.cuda.synchronize(self.device)

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two events, by the GPU's clock."""
        milliseconds: float = first.elapsed_time(last)
        return milliseconds / 1e3

    def dissect(self, call: Call) -> Dissected:
        """Calls twice more: for the allocator's peak, and within torch's profiler."""
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        self.wait()
        extra = torch.cuda.max_memory_allocated(self.device) - before

        def whole() -> None:
            call()
            self.wait()

        events = _profiled([ProfilerActivity.CPU, ProfilerActivity.CUDA], whole)
        kinds, launches, busy = kernels_of(events)
        return Dissected(kinds, extra, launches, busy)

    def ready(self) -> contextlib.AbstractContextManager[None]:
        """As ``udit train`` has it: TF32 beside bfloat16 alone, and convolutions that cuDNN has timed."""
        return set_up(TrainingConfig(precision="bfloat16" if self.half else "float32"), self.device)

    def there(self) -> contextlib.AbstractContextManager[Any]:
        """The GPU."""
        return self.device


CPU = CPUMeter()


def meter_of(device: torch.device, half: bool) -> CPUMeter:
    """What measures a device."""
    return (CUDAMeter if device.type == "cuda" else CPUMeter)(device, half)


def kernels_of(events: Iterable[Any]) -> tuple[dict[str, float], int, float]:
    """Of a profile with a GPU: shares of its time by kind of work, kernels, and seconds in which it ran any.

    A kernel belongs to the operator that launched it; one that no operator launched, e.g. of a CUDA graph, is "other".
    """
    spent: dict[str, float] = defaultdict(float)
    spans = []
    for event in events:
        if event.device_type.name == "CPU":
            spent[kind_of(event.name, event.input_shapes or [])] += event.self_device_time_total
        elif not event.is_user_annotation:
            spans.append((event.time_range.start, event.time_range.end))
    ran = sum(end - start for start, end in spans)
    spent["other"] += max(0.0, ran - sum(spent.values()))
    busy, until = 0.0, float("-inf")
    for start, end in sorted(spans):  # of several streams, which may run at once
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return _shares(spent), len(spans), busy / 1e6


def kind_of(operator: str, shapes: list[list[int]]) -> str:
    """Kind of work of an operator; a depthwise convolution is recognised by its weight's shape."""
    operator = operator.replace("GeneratedBackwardFor_udit_", "udit::")  # a kernel of ours, called under autograd
    if "conv" in operator and not operator.startswith("udit"):
        weights = [s for s in shapes if len(s) == 4 and s[1] == 1 and s[0] > 1]
        if weights and any(len(s) == 4 and s[1] == weights[0][0] for s in shapes):
            return "depthwise convolution"
    return next((kind for kind, names in KINDS.items() if operator.startswith(names)), "other")


def _profiled(activities: list[ProfilerActivity], call: Call) -> list[Any]:
    """The events of a call in the order in which they began."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read at the first profile, which else reports its start and stop
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="CUDA is not available, disabling CUDA profiling")
        with profile(activities=activities, record_shapes=True, profile_memory=True) as trace:
            call()
    events: list[Any] = list(trace.events())
    return sorted(events, key=lambda event: event.time_range.start)


def _shares(spent: Mapping[str, float]) -> dict[str, float]:
    total = sum(spent.values())
    return {kind: spent[kind] / total for kind in (*KINDS, "other") if spent.get(kind)}
