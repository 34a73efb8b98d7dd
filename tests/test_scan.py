"""The selective scan: exact to a sequential one in float64, with compiled kernels and without, lean in memory, fast."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udit import ops
from udit.ops import selective_scan
from udit.ops.scan import gpu, in_rounds, portable

Scan = Callable[..., Tensor]


def plain(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence as it is written, token by token."""
    h, out = x.new_zeros(x.shape[0], *a.shape), []
    for token in range(x.shape[1]):
        entering = (delta[:, token] * x[:, token])[..., None] * b[:, token, None]
        h = (delta[:, token, :, None] * a).exp() * h + entering
        out.append((h * c[:, token, None]).sum(-1))
    return torch.stack(out, 1)


def drawn(batch: int, tokens: int, channels: int, states: int = 16) -> tuple[list[Tensor], Tensor]:
    """Inputs as Mamba starts with them, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    delta = F.softplus(normal(batch, tokens, channels) - 3)
    a = -torch.arange(1.0, states + 1) * (1 + 0.1 * torch.rand(channels, 1, generator=generator))
    b, c = normal(batch, tokens, states), normal(batch, tokens, states)
    return [normal(batch, tokens, channels), delta, a, b, c], normal(batch, tokens, channels)


def results(run: Scan, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The output, and the gradients of all inputs."""
    leaves = [part.clone().requires_grad_() for part in inputs]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


def second(run: Scan, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of a norm of the gradient."""
    leaves = [part.clone().requires_grad_() for part in inputs]
    first = torch.autograd.grad(run(*leaves).sin().sum(), leaves, create_graph=True)
    return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)


def assert_near(found: list[Tensor], expected: list[Tensor], limit: float) -> None:
    for name, one, other in zip(("y", "x", "delta", "a", "b", "c"), found, expected, strict=True):
        assert (one.double() - other).norm() <= limit * other.norm(), name
        assert (one.double() - other).abs().max() <= limit * other.abs().max(), name


@pytest.fixture(params=["compiled", "in PyTorch"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "compiled" and not ops.OPERATORS["selective_scan"].usable("cpu", "all"):
        pytest.skip("no C++ compiler")
    with ops.kernels("all" if request.param == "compiled" else "off"):
        yield request.param


@pytest.mark.parametrize(("tokens", "channels", "states"), [(1, 1, 1), (64, 16, 16), (65, 5, 3), (200, 33, 16)])
def test_scan_and_gradients_equal_the_plain_loop(form: str, tokens: int, channels: int, states: int) -> None:
    inputs, grad = drawn(2, tokens, channels, states)
    precise = [part.double() for part in inputs]
    expected = results(plain, precise, grad.double())
    assert_near(results(selective_scan, inputs, grad), expected, 2e-6)
    assert_near(results(selective_scan, precise, grad.double()), expected, 1e-13)


@cache
def four_thousand() -> list[Tensor]:
    """Results of the plain loop over 4,096 tokens in float64."""
    inputs, grad = drawn(1, 4096, 16)
    return results(plain, [part.double() for part in inputs], grad.double())


@pytest.mark.slow
def test_four_thousand_tokens_keep_five_digits(form: str) -> None:
    assert_near(results(selective_scan, *drawn(1, 4096, 16)), four_thousand(), 1e-5)


def test_fast_and_slow_states_neither_overflow_nor_hide_a_fault(form: str) -> None:
    inputs, _ = drawn(1, 100, 16)
    inputs[1][:, 50] = 1e4  # every state is forgotten at this token
    torch.testing.assert_close(selective_scan(*inputs), plain(*inputs), rtol=1e-4, atol=1e-2)
    inputs[0][0, 30, 2] = torch.nan
    faults = selective_scan(*inputs).isnan()
    assert faults[0, 30, 2]
    assert not faults[0, :, 3].any()


def test_rounds_of_the_reference_equal_the_loop() -> None:
    decay, entering = torch.rand(2, 37, 3, 4), torch.randn(2, 37, 3, 4)
    torch.testing.assert_close(in_rounds(decay, entering), portable.in_place(decay, entering.clone()))


def test_half_precision_is_scanned_in_float32(form: str) -> None:
    inputs, _ = drawn(1, 80, 4)
    halves = [part.bfloat16() for part in inputs]
    out = selective_scan(*halves)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, selective_scan(*(part.float() for part in halves)).bfloat16())


def test_backward_keeps_no_tensor_of_all_tokens_and_states(form: str) -> None:
    """What autograd holds grows by the inputs, and by the states of every 32nd token."""
    held: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    sizes = []
    for tokens in (512, 1024):
        inputs, _ = drawn(1, tokens, 32)
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            selective_scan(*(part.requires_grad_() for part in inputs))
        assert max(held) <= tokens * 32
        sizes.append(sum(held))
    assert sizes[1] <= 2 * sizes[0]


def test_mamba_ssm_is_called_with_its_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signature of ``selective_scan_fn``, tokens last."""

    def selective_scan_fn(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None
    ) -> Tensor:
        assert u.shape == (2, 5, 20)
        assert B.shape == C.shape == (2, 3, 20)
        assert all(part.is_contiguous() for part in (u, delta, A, B, C))
        return plain(u.mT, delta.mT, A, B.mT, C.mT).mT

    inputs, _ = drawn(2, 20, 5, 3)
    torch.testing.assert_close(gpu.by_mamba_ssm(selective_scan_fn, *inputs), plain(*inputs))
    monkeypatch.setattr(gpu, "mamba_ssm", lambda: selective_scan_fn)
    assert gpu.available()
    grad = torch.randn(2, 20, 5)
    for mine, true in zip(results(gpu.apply, inputs, grad), results(plain, inputs, grad), strict=True):
        torch.testing.assert_close(mine, true)
    precise = [part.double() for part in inputs]
    torch.testing.assert_close(second(gpu.apply, precise), second(plain, precise))


# ---- the compiled kernel -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 64, 256, 1024])
def test_scan_is_never_slower_than_the_plain_loop(width: int) -> None:
    inputs, grad = drawn(1, 256, width)

    def seconds(run: Scan) -> float:
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            results(run, inputs, grad)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(selective_scan) <= seconds(plain)


@pytest.mark.slow
def test_memory_of_a_training_pass_is_linear_in_tokens() -> None:
    """Peak memory of a process over that before the scan, at twice the tokens: at most about twice.

    Not ``ru_maxrss``: a new process inherits the peak of the one that started it.
    """
    code = (
        "import re, sys; sys.path.insert(0, sys.argv[2]); from test_scan import drawn, results; "
        "from udit.ops import selective_scan; "
        "peak = lambda: int(re.search('VmHWM: *([0-9]+)', open('/proc/self/status').read().expandtabs())[1]); "
        "results(selective_scan, *drawn(1, 64, 16)); inputs, grad = drawn(1, int(sys.argv[1]), 512); before = peak(); "
        "results(selective_scan, inputs, grad); sys.stdout.write(str(peak() - before))"
    )

    def kilobytes(tokens: int) -> int:
        command = [sys.executable, "-c", code, str(tokens), str(Path(__file__).parent)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    small, large = kilobytes(8192), kilobytes(16384)
    assert 0 < large < 2.3 * small
    assert large < 16384 * 512 * 16 * 4 / 1024, "less than one tensor of all tokens, channels and states"
