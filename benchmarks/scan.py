"""Times the selective scan against the plain loop over tokens, forward and with gradients: ``benchmarks/scan.py``.

256 tokens and 16 states, as in DiMSUM on 32x32 latents. Rounds are interleaved; the fastest of each is reported, which
other programs on the machine disturb least.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from datetime import date

import torch
import torch.nn.functional as F
from torch import Tensor

import udit
from udit import ops

ROUNDS = 7
TOKENS, STATES = 256, 16
WIDTHS = (16, 32, 64, 128, 256, 512, 1024)


def main() -> None:
    """Prints the table."""
    kernel = (
        "compiled kernel" if ops.OPERATORS["selective_scan"].usable("cpu", "all") else "no compiler, so all in PyTorch"
    )
    print(
        f"torch {torch.__version__}, udit {udit.__version__}, Python {platform.python_version()}, {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, float32, {date.today()}, "
        f"{kernel}"
    )
    print(f"{TOKENS} tokens, {STATES} states, batch 1; milliseconds, and how many times faster than the plain loop\n")
    print(f"{'':>6} | {'forward':^44} | {'forward and backward':^44}")
    cells = f"{'plain':>8} {'compiled':>17} {'PyTorch':>17}"
    print(f"{'width':>6} | {cells} | {cells}")
    for width in WIDTHS:
        print(f"{width:>6} | {told(timed(forward(width)))} | {told(timed(training(width)))}", flush=True)


def forward(width: int) -> dict[str, Callable[[], object]]:
    """What is timed without gradients."""
    inputs, _ = drawn(width)
    return {
        "plain": lambda: plain(*inputs),
        "compiled": lambda: ops.selective_scan(*inputs),
        "PyTorch": lambda: in_pytorch(*inputs),
    }


def training(width: int) -> dict[str, Callable[[], object]]:
    """What is timed with the gradients of all inputs."""
    inputs, grad = drawn(width)
    leaves = [part.clone().requires_grad_() for part in inputs]
    return {
        "plain": lambda: torch.autograd.grad(plain(*leaves), leaves, grad),
        "compiled": lambda: torch.autograd.grad(ops.selective_scan(*leaves), leaves, grad),
        "PyTorch": lambda: torch.autograd.grad(in_pytorch(*leaves), leaves, grad),
    }


def plain(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence as it is written, token by token."""
    h, out = x.new_zeros(x.shape[0], *a.shape), []
    for token in range(x.shape[1]):
        entering = (delta[:, token] * x[:, token])[..., None] * b[:, token, None]
        h = (delta[:, token, :, None] * a).exp() * h + entering
        out.append((h * c[:, token, None]).sum(-1))
    return torch.stack(out, 1)


def in_pytorch(*inputs: Tensor) -> Tensor:
    """What runs where nothing is compiled."""
    with ops.kernels("off"):
        return ops.selective_scan(*inputs)


def drawn(width: int) -> tuple[list[Tensor], Tensor]:
    """Inputs as Mamba starts with them, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    a = -torch.arange(1.0, STATES + 1).expand(width, STATES)
    delta = F.softplus(normal(1, TOKENS, width) - 3)
    b, c = normal(1, TOKENS, STATES), normal(1, TOKENS, STATES)
    return [normal(1, TOKENS, width), delta, a, b, c], normal(1, TOKENS, width)


def timed(cases: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The fastest of some interleaved rounds of each, in milliseconds; the first round warms up."""
    best = dict.fromkeys(cases, float("inf"))
    for round_ in range(ROUNDS + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if round_:
                best[name] = min(best[name], (time.perf_counter() - start) * 1e3)
    return best


def told(times: dict[str, float]) -> str:
    """A row's half: the plain loop, then each other with its speed-up."""
    plain_time, *others = times.values()
    return " ".join([f"{plain_time:8.2f}", *(f"{t:8.2f} {plain_time / t:7.1f}x" for t in others)])


if __name__ == "__main__":
    main()
