"""The parts of the tool on things whose answers are known; `selftest` starts it under the stub."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import compiled_bytes
import fake_cuda as fc
import strides
import syncs
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

FILE = "selfcheck.py"


def stub() -> None:
    """One H100; memory that copies; no times."""
    assert torch.cuda.device_count() == 1 and torch.cuda.get_device_capability() == (9, 0)
    here = torch.arange(1000.0)
    assert torch.equal(here.cuda().cpu(), here), "memory of the device does not copy"
    assert torch.equal(here.pin_memory(), here)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(), end.record()
    torch.cuda.synchronize()
    assert math.isnan(begin.elapsed_time(end)), "the stub tells a time"


def tally() -> None:
    """Operators, bytes and memory of a product, an activation and their backward."""
    with fc.no_gpu():
        a, b = torch.empty(64, 32), torch.empty(32, 16, requires_grad=True)
        with fc.Tally([a, b]) as counted:
            out = (a @ b).view(32, 32).relu()
            forward, kept = counted.take(), counted.living
            out.sum().backward()
            backward = counted.take()
    moved = 4 * (64 * 32 + 32 * 16 + 64 * 16) + 4 * 2 * 64 * 16
    assert forward["operators"] == 2 and math.isclose(forward["GB"] * 1e9, moved), forward
    assert kept == 4 * 64 * 16, kept  # relu's output; the product is gone
    assert backward["by_operator"]["mm.default"]["operators"] == 1, backward


def choice() -> None:
    """Autocast gives bf16, and attention is one of the fused kinds."""
    with fc.no_gpu():
        layer, x = nn.Linear(64, 192), torch.empty(2, 256, 64)
        fc.autocast(True)
        with fc.Tally(list(layer.parameters())) as counted:
            q, k, v = layer(x).view(2, 256, 3, 4, 16).permute(2, 0, 3, 1, 4)
            out = F.scaled_dot_product_attention(q, k, v)
        fc.autocast(False)
    assert out.dtype == torch.bfloat16, out.dtype
    assert any("_scaled_dot_product_" in name for name in counted.count), dict(counted.count)


def waits() -> None:
    """Each way of waiting is seen once, and what does not wait is not."""
    with fc.no_gpu():
        torch._C._set_only_lift_cpu_tensors(True)
        x, host = torch.empty(4), torch.ones(4, device="cpu")
        with syncs.Syncs(Path(__file__).parent) as seen:
            x.sum().item()
            x.cpu()
            x.copy_(host)
            host.to("cuda", non_blocking=True)
            torch.tensor([1.0, 2.0], device="cuda")
            torch.cuda.synchronize()
            x * 2, torch.full((3,), 2.0), torch.arange(3)
            with contextlib.suppress(DynamicOutputShapeException):
                x[x > 0]
            rows = seen.take()
        torch._C._set_only_lift_cpu_tensors(False)
    kinds = sorted(row["kind"] for row in rows for _ in range(row["times"]))
    assert kinds == ["blocking copy"] * 3 + ["copy"] + ["read back"] * 2 + ["synchronize"], rows
    assert all(row["where"].startswith(FILE) for row in rows), rows


def layouts() -> None:
    """The three ways a map can lie."""
    with fc.no_gpu():
        x = torch.empty(2, 3, 4, 5)
        told = [strides.layout(t) for t in (x, x.to(memory_format=torch.channels_last), x.permute(0, 2, 3, 1))]
    assert [(t["contiguous"], t["channels_last"]) for t in told] == [(True, False), (False, True), (False, False)], told


class Broken(nn.Module):
    """Has one graph break."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        torch._dynamo.graph_break()
        return x.relu()


def inductor() -> None:
    """Two products and a GELU between them, down to sm_90; and a break."""
    with fc.no_gpu():
        net, x = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)), torch.empty(256, 64)
        told, made = compiled_bytes.compiled(net, (x.requires_grad_(),), {}, True)
        broken, _ = compiled_bytes.compiled(Broken(), (torch.empty(4, 8),), {}, False)
    assert told["graph_breaks"] == [] and len(broken["graph_breaks"]) == 1, broken
    assert told["forward"]["extern"]["launches"] == 2 and told["forward"]["triton"]["launches"] >= 1, told
    assert told["backward"]["extern"]["launches"] == 4 and told["backward"]["launches"] >= 5, told
    least = 2 * (256 * (64 + 128) + 64 * 128 + 256 * (128 + 64) + 128 * 64 + 2 * 256 * 128)
    assert least <= told["forward"]["GB"] * 1e9 <= 3 * least, (least, told)
    assert made is not None and len(made.codes) == 2
    registers = compiled_bytes.built(made.ptx)
    assert registers["kernels"] >= 2 and 8 <= registers["most_registers"] <= 255, registers


def operator() -> None:
    """An operator of the library counts as its launches and the operators beside them, eager and compiled."""
    from udit.ops.operator import Operator

    def same(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    made = Operator(
        "example_scaled(Tensor x) -> Tensor", same, same, lambda grad, _: (grad,), {"cuda": "example_kernels"}
    )
    with fc.no_gpu():
        x = torch.empty(256, 64)
        with fc.Tally([x]) as counted:
            made.operator(x)
        layer = nn.Linear(64, 64)
        layer.register_forward_hook(lambda module, given, out: made.operator(out.float()))
        told, _ = compiled_bytes.compiled(layer, (x.requires_grad_(),), {}, False)
    size = 4 * 256 * 64
    assert dict(counted.count) == {"udit.example_scaled.default: scaled": 2, "sum.default": 1}, dict(counted.count)
    assert counted.bytes.total() == 5 * size + 4, counted.bytes
    extern = told["forward"]["extern"]
    assert extern["by_name"] == {"udit.example_scaled.default: scaled": 2, "sum.default": 1, "extern_kernels.addmm": 1}
    assert extern["GB"] * 1e9 >= 5 * size, extern


if __name__ == "__main__":
    for part in (stub, tally, operator, choice, waits, layouts, inductor):
        part()
        print(f"ok  {part.__name__}: {(part.__doc__ or '').strip()}", flush=True)
