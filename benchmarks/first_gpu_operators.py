"""Operators on a GPU: errors of the kernels beside those of the reference, and times. A part of ``first_gpu.py``."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from udit.benchmarking.subjects import inputs
from udit.models.build import build
from udit.ops.operator import OPERATORS, Operator

if TYPE_CHECKING:
    from first_gpu import Machine

Arguments = tuple[Any, ...]
Cast = contextlib.AbstractContextManager[Any]
ERRORS_AT = 4
"""Samples of the batch whose errors are found, in float64."""


def calls(machine: Machine, name: str, dtype: torch.dtype, batch: int) -> dict[str, tuple[str, Arguments]]:
    """Every different call of an operator with a kernel for GPUs in a training forward of a network: its arguments.

    Weights have noise on them, so that no gate or modulation is 0, and maps the type that autocast gives them.
    """
    found: dict[str, tuple[str, Arguments]] = {}
    honest = Operator.chosen

    def chosen(operator: Operator, arguments: Arguments) -> Callable[..., Tensor]:
        if "cuda" in operator.modules:
            sizes = [_facts(a) for a in arguments]
            found.setdefault(f"{operator.name} {' '.join(sizes)}", (operator.name, arguments))
        return honest(operator, arguments)

    config = machine.config(name)
    network = build(config, device=machine.device).train()
    with torch.device(machine.device), torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        given = inputs(config, batch, config.size)
        with mock.patch.object(Operator, "chosen", chosen), _cast(machine, dtype):
            network(*given)
    return {call: (operator, tuple(_kept(a) for a in arguments)) for call, (operator, arguments) in found.items()}


def _facts(value: Any) -> str:
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else str(value)


def _kept(value: Any) -> Any:
    """With the strides that the network gave it: a slice of a larger tensor stays one."""
    return value.detach() if isinstance(value, Tensor) else value


def operators(machine: Machine, name: str) -> dict[str, Any]:
    """Of every call: errors of output and gradients against float64, kernel's and reference's; in bfloat16 times."""
    told: dict[str, Any] = {}
    dtypes = (torch.float32, torch.bfloat16) if machine.rehearsal else (torch.float32, torch.bfloat16, torch.float16)
    for dtype in dtypes:
        for call, (operator, arguments) in calls(machine, name, dtype, min(ERRORS_AT, machine.batch)).items():
            cast = _cast(machine, dtype)
            told[f"{call} {str(dtype).removeprefix('torch.')}"] = errors(OPERATORS[operator], arguments, cast)
    cast = _cast(machine, torch.bfloat16)
    for call, (operator, arguments) in calls(machine, name, torch.bfloat16, machine.batch).items():
        told[f"{call} ms"] = {
            who: statistics.median(machine.times(lambda function=function, a=arguments: gradients(function, a, cast)))
            for who, function in _both(OPERATORS[operator])
        }
    return told


def errors(operator: Operator, arguments: Arguments, cast: Cast) -> dict[str, Any]:
    """Errors relative to float64, of the output and then of each gradient, and the largest quotient of both."""
    doubles = tuple(a.double() if _floats(a) else a for a in arguments)
    exact = gradients(operator.reference, doubles, contextlib.nullcontext())
    with cast:
        ran = operator.chosen(arguments) not in (operator.reference, operator.otherwise)
    row: dict[str, Any] = {"kernel ran": ran}
    for who, function in _both(operator):
        found = gradients(function, arguments, cast)
        row[who] = [_error(a, b) for a, b in zip(found, exact, strict=True) if a is not None and b is not None]
    row["quotient"] = max(a / max(b, 1e-12) for a, b in zip(row["kernel"], row["reference"], strict=True))
    return row


def _both(operator: Operator) -> tuple[tuple[str, Callable[..., Tensor]], ...]:
    return ("kernel", operator), ("reference", operator.reference)


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _cast(machine: Machine, dtype: torch.dtype) -> torch.autocast:
    """Autocast as in training, which may be entered again and again."""
    return torch.autocast(machine.device.type, dtype, enabled=dtype != torch.float32)


def gradients(call: Callable[..., Tensor], arguments: Arguments, cast: Cast) -> list[Tensor | None]:
    """The output, and the gradients of all floating-point arguments, None of those that have none."""
    own = [a.detach().requires_grad_() if _floats(a) and not _constant(a) else a for a in arguments]
    leaves = [a for a in own if isinstance(a, Tensor) and a.requires_grad]
    with cast:
        out = call(*own)
    draw = torch.Generator(out.device).manual_seed(0)
    given = torch.randn(out.shape, generator=draw, device=out.device).bfloat16().to(out.dtype)  # the same in all types
    return [out.detach(), *torch.autograd.grad(out, leaves, given, allow_unused=True)]


def _constant(tensor: Tensor) -> bool:
    """Whether it is a table of positions, [2, N, R]."""
    return tensor.ndim == 3 and len(tensor) == 2


def _error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact values, unless these are all 0."""
    off = found.double() - exact
    return float(off.square().mean().sqrt()) / (float(exact.square().mean().sqrt()) or 1.0)
