"""The private names of torch in ``ops/surroundings.py`` have the meaning that it relies on.

A version of torch that renames one or changes its meaning fails here first.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from udit.ops import surroundings


@torch.no_grad()
def test_a_plain_call_is_not_observed() -> None:
    assert not surroundings.observed()
    assert not surroundings.transformed()
    assert not surroundings.compiling()
    assert not surroundings.exporting()


def test_gradients_are_observers() -> None:
    assert surroundings.observed()


@torch.no_grad()
@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, torch.func.jacfwd, torch.func.functionalize])
def test_transformations_of_functions_are_seen(transform: Any) -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append((surroundings.transformed(), surroundings.observed()))
        return (x * x).sum()

    transform(function)(torch.ones(3))
    assert set(seen) == {(True, True)}
    assert not surroundings.transformed()


@torch.no_grad()
def test_forward_derivatives_are_seen() -> None:
    with forward_ad.dual_level():
        assert surroundings.transformed()
    assert not surroundings.transformed()


def test_gradients_in_batches_are_seen() -> None:
    """torch's older ``vmap`` runs them, which ``transformed`` knows nothing of."""
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.append((surroundings.batched(grad), surroundings.transformed()))
            return 2 * grad

    x = torch.ones(3, requires_grad=True)
    torch.autograd.grad(Watch.apply(x), x, torch.eye(3), is_grads_batched=True)
    torch.autograd.grad(Watch.apply(x), x, torch.ones(3))
    assert seen == [(True, False), (False, False)]


@torch.no_grad()
def test_modes_profilers_and_tracers_are_seen() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with Watch():
        assert surroundings.observed()
    with torch.device("meta"):
        assert surroundings.observed()
    with profile(activities=[ProfilerActivity.CPU]):
        assert surroundings.observed()
    seen = []
    assert not surroundings.recorded()

    def traced(x: Tensor) -> Tensor:
        seen.append((surroundings.observed(), surroundings.recorded()))
        return x + 1

    torch.jit.trace(traced, torch.ones(2), check_trace=False)
    assert seen == [(True, True)]
    assert not surroundings.observed()


@torch.no_grad()
def test_compilers_ask_the_transformations_when_they_trace() -> None:
    """A function that is marked so is called, and its answer is a constant of the graph."""
    torch._dynamo.reset()

    def function(x: Tensor) -> Tensor:
        assert surroundings.compiling()
        return x * (3.0 if surroundings.transformed() else 2.0)

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    derivative = torch.compile(lambda x: torch.func.jvp(function, (x,), (x,))[1], fullgraph=True, backend="eager")
    assert torch.equal(derivative(torch.ones(2)), torch.full((2,), 3.0))


def test_exporting_is_seen() -> None:
    class Part(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (2.0 if surroundings.exporting() else 1.0)

    for strict in (False, True):
        program = torch.export.export(Part(), (torch.ones(2),), strict=strict)
        assert torch.equal(program.module()(torch.ones(2)), torch.full((2,), 2.0))


def test_kinds_of_tensors_are_distinguished() -> None:
    class Foreign(Tensor):
        pass

    x, foreign = torch.ones(2), torch.ones(2).as_subclass(Foreign)
    assert surroundings.plain((x, nn.Parameter(x), None, 3, True))
    assert not surroundings.plain((x, foreign))
    assert surroundings.foreign((x, foreign))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    assert not surroundings.plain((fake, 1))
    assert not surroundings.foreign((fake, 1))


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_hooks_are_seen(register: str) -> None:
    layer = nn.Linear(2, 2)
    assert not surroundings.hooked(layer)
    handle = getattr(layer, register)(lambda *_: None)
    assert surroundings.hooked(layer)
    handle.remove()
    with register_module_forward_pre_hook(lambda *_: None):
        assert surroundings.hooked(layer)
    assert not surroundings.hooked(layer)
