"""The compiled matrix product: torch's numbers and gradients, the same bits on any number of threads, doing without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from conftest import needs_compiler
from rounding import assert_near_float64
from udit.ops import apply, linear
from udit.ops.matmul.cpu import ROWS


def draw(rows: int, inner: int, outer: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(outer)


@pytest.mark.parametrize(
    "sizes",
    [
        (32, 1, 1),
        (37, 5, 3),
        (64, 96, 288),
        (101, 33, 47),
        (250, 1600, 20),
        (33, 20, 1700),
        (4100, 32, 40),
        (32, 800, 80),
    ],
    ids=lambda sizes: "x".join(map(str, sizes)),
)
def test_values_and_gradients_are_those_of_torch_in_float64(sizes: tuple[int, int, int]) -> None:
    """Every odd end: tiles, panels, stretches of the sum and groups of columns that are not full."""
    inputs, weights = draw(*sizes), torch.randn(sizes[0], sizes[2])
    assert_near_float64(linear, F.linear, inputs, weights, max(sizes))


def test_maps_without_a_bias_are_taken_in_any_layout() -> None:
    x, weight = torch.randn(2, 24, 5, 6).permute(0, 2, 3, 1), torch.randn(24, 40).t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-5, rtol=1e-5)


def test_not_a_number_stays_in_its_row() -> None:
    x, weight, bias = draw(40, 12, 20)
    x[7, 3] = float("nan")
    out = linear(x, weight, bias)
    assert out[7].isnan().all()
    assert not out[[*range(7), *range(8, 40)]].isnan().any()


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS])
def test_other_element_types_and_autocast_are_torchs(rows: int) -> None:
    layer = nn.Linear(8, 8)
    x = torch.randn(rows, 8)
    assert torch.equal(apply(layer.double(), x.double()), F.linear(x.double(), layer.weight, layer.bias))
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert apply(layer, x).dtype == torch.bfloat16


def test_operations_are_counted_with_the_kernel_and_without() -> None:
    for device in ("cpu", "meta"):
        inputs = [tensor.to(device).requires_grad_() for tensor in draw(64, 16, 32)]
        with FlopCounterMode(display=False) as counter:
            out = linear(*inputs)
            assert counter.get_total_flops() == 2 * 64 * 16 * 32
            out.sum().backward()
        assert counter.get_total_flops() == 3 * 2 * 64 * 16 * 32


@needs_compiler
@pytest.mark.parametrize(("rows", "threads"), [(896, 8), (588, 6), (980, 8), (4000, 16)])
def test_more_threads_than_rows_fill_are_idle(rows: int, threads: int) -> None:
    x, weight, bias = draw(rows, 256, 256)
    torch.set_num_threads(threads)
    out = linear(x, weight, bias)
    torch.set_num_threads(1)
    assert torch.equal(out, linear(x, weight, bias))


@needs_compiler
@torch.no_grad()
def test_modes_profilers_and_tracers_see_the_operator() -> None:
    """Without gradients the dispatcher is skipped, but only where that cannot be observed."""
    x, weight, _ = draw(64, 8, 8)
    expected, seen = linear(x, weight), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        out = linear(x, weight)
    assert torch.equal(out, expected)
    assert seen == ["udit::linear"]
    with FlopCounterMode(display=False) as counter:
        linear(x, weight)
    assert counter.get_total_flops() == 2 * 64 * 8 * 8
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        linear(x, weight)
    assert "udit::linear" in {event.name for event in trace.events()}
    traced = torch.jit.trace(lambda given: linear(given, weight), x, check_trace=False)
    assert torch.equal(traced(2 * x), linear(2 * x, weight))


def test_a_layer_that_is_hooked_or_replaced_is_called() -> None:
    """Low-rank adaptation, quantisation and hooks rely on it."""
    x, seen = torch.randn(40, 8), []
    layer = nn.Linear(8, 8)
    handle = layer.register_forward_hook(lambda *given: seen.append(given[2]))
    out = apply(layer, x)
    assert seen[0] is out
    handle.remove()
    apply(layer, x)
    assert len(seen) == 1
    layer.register_forward_pre_hook(lambda _, given: (2 * given[0],))
    torch.testing.assert_close(apply(layer, x), F.linear(2 * x, layer.weight, layer.bias))
    assert apply(nn.Sequential(nn.Linear(8, 3), nn.Tanh()), x).shape == (40, 3)
    layer, calls = nn.Linear(8, 8), []
    with register_module_forward_pre_hook(lambda module, _: calls.append(module)):
        apply(layer, x)
    assert calls == [layer]


def test_an_exported_program_is_not_bound_to_a_number_of_rows() -> None:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(_Layer(), (torch.randn(4, 8),), dynamic_shapes=({0: batch},))
    assert program.module()(torch.randn(2 * ROWS, 8)).shape == (2 * ROWS, 8)
    assert not any("udit" in str(node.target) for node in program.graph.nodes)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return apply(self.layer, x)
