"""Whether a compiler, a transformation, a mode or a hook is active around an operator's call.

The private names of torch that this needs are in this module alone. ``tests/test_surroundings.py``
fails when a version of torch changes what one of them says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

PLAIN = frozenset({Tensor, nn.Parameter, type(None), bool, int, float})
"""Types of arguments that hold data and nothing else."""
WITHOUT_DATA = (FakeTensor,)

# Bound here, since every call of an operator uses them.
_compiling = torch.compiler.is_compiling
_exporting = torch.compiler.is_exporting
_gradients = torch.is_grad_enabled
_interpreters = torch._C._functorch.peek_interpreter_stack
_tracing_state = torch._C._get_tracing_state
_profiling = torch._C._autograd._profiler_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_batched = torch._C._functorch.is_legacy_batchedtensor


def compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` traces the call."""
    return _compiling()


def exporting() -> bool:
    """Whether ``torch.export`` traces the call, whose program knows torch's own operators only."""
    return _exporting()


def transformed() -> bool:
    """Whether a transformation of functorch (``torch.func``) or a level of forward-mode derivatives is active."""
    return _interpreters() is not None or forward_ad._current_level >= 0


transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a compiler calls it rather than reads it


def batched(grad: Tensor) -> bool:
    """Whether a gradient is several at once, as those of ``is_grads_batched``; no transformation is active then."""
    return _batched(grad)


def recorded() -> bool:
    """Whether a compiler or a tracer writes down which operators are called."""
    return _compiling() or _tracing_state() is not None


def plain(arguments: tuple[Any, ...]) -> bool:
    """Whether all tensors are of torch's own class, which holds data."""
    for argument in arguments:  # noqa: SIM110 - a generator costs more than the whole loop
        if type(argument) not in PLAIN:
            return False
    return True


def foreign(arguments: tuple[Any, ...]) -> bool:
    """Whether any tensor is of a subclass that kernels do not support; torch's fake tensors do not count."""
    return any(
        isinstance(argument, Tensor) and type(argument) not in PLAIN and not isinstance(argument, WITHOUT_DATA)
        for argument in arguments
    )


def without_data(x: Tensor) -> bool:
    """Whether a tensor has a shape alone, so that nothing can be decided by its values."""
    return x.is_meta or isinstance(x, WITHOUT_DATA)


def observed() -> bool:
    """Whether autograd, a compiler, a tracer, a profiler or a mode would notice how an operator is called."""
    return (
        _gradients()
        or _compiling()
        or _tracing_state() is not None
        or _profiling()
        or bool(_dispatch_modes() or _function_modes())
        or _interpreters() is not None
    )


def hooked(layer: nn.Module, everywhere: bool = True) -> bool:
    """Whether a layer has hooks, its own or, where asked ``everywhere``, those that all modules have."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return any(hooks) or (everywhere and bool(_has_any_global_hook()))
