"""A GPU is measured by its own events, allocator and kernels. A stand-in for torch's CUDA shows what is asked of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

import udit
from conftest import ErrorOf, succeeds
from udit.benchmarking import job, meters, report
from udit.benchmarking.meters import CUDAMeter, kernels_of

WORDS = ("U-DiT-tiny", "--work", "forward", "--work", "train", "--rounds", "2")


class StandIn:
    """torch.cuda of a GPU that is late: nothing is known before a synchronisation, and each mark is a second on."""

    def __init__(self) -> None:
        self.now, self.synchronised, self.peak = 0.0, 0, 100
        self.asked: list[str] = []

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        return Mark(self)

    def synchronize(self, device: torch.device) -> None:
        self.asked.append("synchronize")
        self.synchronised += 1

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.asked.append("reset")

    def memory_allocated(self, device: torch.device) -> int:
        return 100

    def max_memory_allocated(self, device: torch.device) -> int:
        assert self.asked[-1] == "synchronize"
        return 100 + 23_000_000


class Mark:
    """An event: its time is known after the next synchronisation."""

    def __init__(self, gpu: StandIn) -> None:
        self.gpu, self.known_after = gpu, -1

    def record(self) -> None:
        self.gpu.now += 1000.0
        self.at, self.known_after = self.gpu.now, self.gpu.synchronised

    def elapsed_time(self, other: Mark) -> float:
        assert self.known_after < self.gpu.synchronised
        assert other.known_after < self.gpu.synchronised
        return other.at - self.at


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A GPU for ``bench``, whose networks run on the CPU all the same."""
    stand_in = StandIn()
    monkeypatch.setattr(torch.cuda, "Event", stand_in.event)
    for name in ("synchronize", "reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(stand_in, name))
    monkeypatch.setattr(CUDAMeter, "side", 64)
    monkeypatch.setattr(meters, "_profiled", profiled)
    monkeypatch.setattr(job, "meter_of", lambda device, half: CUDAMeter(device, half))
    return stand_in


def event(name: str, start: float, end: float, **facts: Any) -> SimpleNamespace:
    """Of a profile with microseconds."""
    span = SimpleNamespace(start=start, end=end)
    kind = DeviceType.CUDA if facts.pop("kernel", False) else DeviceType.CPU
    known = {"input_shapes": [], "self_device_time_total": 0.0, "is_user_annotation": False}
    return SimpleNamespace(name=name, time_range=span, device_type=kind, **(known | facts))


PROFILE = [
    event("aten::mm", 0, 5, self_device_time_total=200_000.0),
    event("GeneratedBackwardFor_udit_grid_attention", 5, 9, self_device_time_total=300_000.0),
    event("triton_poi_fused_add_0", 9, 12, self_device_time_total=100_000.0),
    event(
        "aten::cudnn_convolution", 12, 13, self_device_time_total=100_000.0, input_shapes=[[2, 8, 4, 4], [8, 1, 5, 5]]
    ),
    event("gemm", 100_000, 300_000, kernel=True),
    event("_backward", 300_000, 600_000, kernel=True),
    event("triton_poi_fused_add_0", 600_000, 700_000, kernel=True),
    event("conv", 650_000, 750_000, kernel=True),
    event("replayed", 800_000, 1_100_000, kernel=True),
    event("Optimizer.step#AdamW.step", 0, 2_000_000, kernel=True, is_user_annotation=True),
]
"""Five kernels, of which two overlap and one was launched by no operator, and a mark of the user's."""


def profiled(activities: object, call: Callable[[], object]) -> list[Any]:
    call()
    return PROFILE


def test_kernels_belong_to_the_operators_that_launched_them() -> None:
    kinds, launches, busy = kernels_of(PROFILE)
    assert kinds == pytest.approx(
        {
            "depthwise convolution": 0.1,
            "attention": 0.3,
            "matrix product": 0.2,
            "kernels of the compiler": 0.1,
            "other": 0.3,
        }
    )
    assert launches == 5
    assert busy == pytest.approx(0.65 + 0.3)


@pytest.mark.slow
def test_rows_of_a_gpu(gpu: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    out = succeeds(capsys, "bench", *WORDS, "--precision", "bfloat16", "--json", str(file))
    found = json.loads(file.read_text())
    assert found["machine"]["dtype"] == "bfloat16"
    forward, step = found["results"]
    for row in (forward, step):
        assert row["seconds"] == [1.0, 1.0], "a mark before the call and one after"
        assert row["launches"] == 5
        assert row["idle"] == pytest.approx(0.05)
        assert row["peak"] == 2 * 64**3
    weights = sum(4 * tensor.numel() for tensor in udit.build("U-DiT-tiny").state_dict().values())
    assert step["peak_bytes"] == 3 * weights + 23_000_000
    assert "launches | GPU idle" in out


@pytest.mark.slow
def test_networks_compute_in_bfloat16_when_asked(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    honest = torch.nn.functional.linear

    def linear(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if x.device.type != "meta":  # where arithmetic is counted
            seen.append(torch.is_autocast_enabled("cpu"))
        return honest(x, *rest)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    list(job.bench(["DiT-tiny"], work=["forward", "train", "image"], rounds=1, precision="bfloat16"))
    assert seen
    assert all(seen)


def test_the_record_names_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Example")
    assert report.machine(torch.device("cuda", 0), "bfloat16")["GPU"] == "NVIDIA Example"
    assert "GPU" not in report.machine()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "cuda"), "this torch finds no CUDA GPU; take cpu or auto"),
        (("--device", "meta"), "device is 'meta'; take auto, cpu, cuda"),
    ],
)
def test_devices_that_are_not_there(
    error_of: ErrorOf, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in error_of("bench", "U-DiT-tiny", *words)
