"""Operators by their Triton kernels, which Triton's interpreter runs on the CPU.

Triton decides for its interpreter when it is imported, so this takes a process of its own, which ``test_triton.py``
starts: as a script, which prints the errors of examples as JSON, or as a plugin of pytest (``-p interpreted``), under
which the tests of operators meet these kernels in place of those for the CPU.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from udit.nn.tokens import rotary_table
from udit.ops import nvidia
from udit.ops.operator import OPERATORS, Operator

FOLDERS = {
    "grid_attention": "attention",
    "depthwise": "depthwise_convolution",
    "modulated_norm": "modulation",
    "gated_sum": "gating",
}
"""Of operators with Triton kernels."""

for folder in FOLDERS.values():
    sys.modules[f"udit.ops.{folder}.cpu"] = importlib.import_module(f"udit.ops.{folder}.gpu")
nvidia.available = lambda: True  # type: ignore[assignment]

Arguments = tuple[Any, ...]


def narrow() -> None:
    """Strips of two columns: fewer operations for the interpreter."""
    gpu = importlib.import_module("udit.ops.depthwise_convolution.gpu")
    gpu.COLUMNS = dict.fromkeys(gpu.COLUMNS, 2)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape)


def examples() -> Iterator[tuple[str, Arguments]]:
    """Several blocks along every axis, odd widths and sizes, and every option; several times where results are few."""
    yield "grid_attention", (normal(1, 4, 4, 48), torch.tensor([1.0, 20.0]), rotary_table(2, 2, 8), 2, 2)
    yield "depthwise", (normal(1, 2, 3, 20), normal(20, 1, 3, 3), normal(20), True)
    yield "modulated_norm", (normal(2, 3, 3, 20) * 3 + 5, normal(2, 1, 1, 20), normal(2, 1, 1, 20))
    yield "gated_sum", (normal(2, 3, 3, 20), normal(2, 1, 1, 20), normal(2, 3, 3, 20))
    for _ in range(4):
        yield "grid_attention", (normal(2, 8, 8, 48), torch.tensor([1.0, 20.0]), rotary_table(4, 4, 8), 2, 2)
    yield "grid_attention", (normal(1, 6, 6, 30), None, None, 1, 1)
    yield "grid_attention", (normal(1, 20, 8, 72), torch.tensor([5.0]), rotary_table(10, 4, 24), 1, 2)
    yield "grid_attention", (normal(1, 8, 20, 72), None, rotary_table(8, 20, 12), 2, 1)
    yield "grid_attention", (normal(1, 9, 6, 126), torch.tensor([9.0, 1.0, 50.0]), None, 3, 3)
    yield "grid_attention", (normal(1, 4, 4, 3 * 96), torch.tensor([9.0]), rotary_table(2, 2, 96), 1, 2)
    yield "depthwise", (normal(2, 9, 7, 20), normal(20, 1, 5, 5), normal(20), False)
    yield "depthwise", (normal(1, 8, 9, 33), normal(33, 1, 3, 3), normal(33), True)
    yield "depthwise", (normal(1, 2, 11, 70), normal(70, 1, 7, 7), None, True)
    yield "depthwise", (normal(9, 2, 2, 16), normal(16, 1, 3, 3), normal(16), True)
    yield "modulated_norm", (normal(2, 8, 17, 40), normal(2, 1, 1, 80)[..., 40:], normal(2, 1, 1, 80)[..., :40])
    yield "modulated_norm", (normal(3, 5, 12), normal(3, 1, 12), normal(3, 1, 12))
    yield "modulated_norm", (normal(1, 2, 2, 385), normal(1, 1, 1, 385), normal(1, 1, 1, 385))
    yield "gated_sum", (normal(2, 8, 17, 40), normal(2, 1, 1, 80)[..., 40:], normal(2, 8, 17, 40))
    yield "gated_sum", (normal(3, 5, 130), normal(3, 1, 130), normal(3, 5, 130))


def outcome(function: Callable[..., Tensor], name: str, arguments: Arguments, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients; maps are of ``dtype``, weights and factors too in float64 and of float32 otherwise."""
    rest = torch.promote_types(dtype, torch.float32)
    leaves = [
        x.to(dtype if x.shape == arguments[0].shape else rest).clone() if isinstance(x, Tensor) else x
        for x in arguments
    ]
    constant = 2 if name == "grid_attention" else None  # its rotary table
    wanted = [x for i, x in enumerate(leaves) if isinstance(x, Tensor) and i != constant]
    for x in wanted:
        x.requires_grad_()
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).flip(1).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, wanted, weights)]


def composition(operator: Operator, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The reference as it runs under autocast: a convolution's weights are of its map's type."""

    def run(*arguments: Any) -> Tensor:
        if operator.name == "depthwise":
            x, kernel, bias, gelu = arguments
            return operator.reference(x, kernel.to(dtype), None if bias is None else bias.to(dtype), gelu)
        return operator.reference(*arguments).to(dtype)

    return run


def root(x: Tensor) -> float:
    """Root mean square."""
    return float(x.double().square().mean().sqrt())


def errors(examples: Iterator[tuple[str, Arguments]], dtypes: list[torch.dtype]) -> Iterator[dict[str, Any]]:
    """Of every output and gradient, the error of kernel and composition against float64, and its size."""
    for name, arguments in examples:
        operator = OPERATORS[name]
        assert operator.chosen(arguments) == operator.run_kernel
        for dtype in dtypes:
            given = tuple(x.to(dtype).float() if isinstance(x, Tensor) else x for x in arguments)
            exact = outcome(operator.reference, name, given, torch.float64)
            mine = outcome(operator, name, given, dtype)
            theirs = outcome(composition(operator, dtype), name, given, dtype)
            for i, (true, one, other) in enumerate(zip(exact, mine, theirs, strict=True)):
                assert one.shape == true.shape and one.isfinite().all()
                row = {"operator": name, "result": i, "dtype": str(dtype).split(".")[1], "count": true.numel()}
                yield row | {"size": root(true), "kernel": root(one - true), "composition": root(other - true)}


def main() -> None:
    """Rows of all examples."""
    torch.manual_seed(0)
    for row in errors(examples(), [torch.float32, torch.float16]):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
else:
    narrow()
