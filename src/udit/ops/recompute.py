"""Results that cost little, computed again in backward instead of kept (Chen et al. 2016, sublinear memory).

A network calls such functions through ``recomputable``, operators do so themselves. While a block runs within
``recomputing``, autograd keeps of such a result only how it was computed; backward computes it when it is first needed,
once, and frees it after its last use. The bits are those of the first time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.weak import TensorWeakRef

from udit.ops import surroundings


class _Kept:
    """A tensor that backward needs as it is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # the tensor itself would hold the graph that holds this
        self.version = tensor._version

    def get(self) -> Tensor:
        """The tensor; RuntimeError if it was changed since."""
        if self.tensor._version != self.version:
            raise RuntimeError(f"a tensor of shape {list(self.tensor.shape)} that backward needs was changed in place")
        return self.tensor


class _Recipe:
    """A function, its arguments and the state of autocast, until the result is computed."""

    def __init__(self, function: Callable[..., Tensor], arguments: tuple[Any, ...], device: str) -> None:
        self.function = function
        self.arguments = arguments
        self.device = device
        self.cast = autocast_dtype(device)
        self.result: Tensor | None = None

    def get(self) -> Tensor:
        """The result, from arguments that may have to be computed themselves."""
        if self.result is None:
            arguments = [_get(argument) for argument in self.arguments]
            with torch.no_grad():
                if self.cast == autocast_dtype(self.device):
                    self.result = self.function(*arguments)
                else:
                    dtype, enabled = self.cast or torch.float32, self.cast is not None
                    with torch.autocast(self.device, dtype, enabled, cache_enabled=False):
                        self.result = self.function(*arguments)
            self.arguments = ()
        return self.result


class _Known:
    """A recomputable result that exists, and how to compute it."""

    def __init__(self, tensor: Tensor, recipe: _Recipe) -> None:
        self.tensor = TensorWeakRef(tensor)
        self.version = tensor._version
        self.recipe = recipe

    def recipe_of(self, tensor: Tensor) -> _Recipe | None:
        """How to compute a tensor in the result's memory: the result itself or a view; None if anything changed."""
        mine = self.tensor()
        if mine is None or tensor._version != self.version or tensor.dtype != mine.dtype:
            return None
        if _layout(mine) == _layout(tensor):
            return self.recipe
        return _Recipe(torch.as_strided, (self.recipe, *_layout(tensor)), self.recipe.device)


_known: ContextVar[dict[int, _Known] | None] = ContextVar("recomputable results", default=None)
"""By memory, the recomputable results of the block that runs; None outside ``recomputing``."""


def recomputable(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function(*arguments)``, which backward may compute again: no randomness, nothing changed in place."""
    out = function(*arguments)
    if surroundings.compiling():
        return out
    known = _known.get()
    if known is not None and torch.is_grad_enabled():
        kept = tuple(_keep(a) if isinstance(a, Tensor) else a for a in arguments)
        known[_memory(out)] = _Known(out, _Recipe(function, kept, out.device.type))
    return out


OF_LITTLE_COST: set[Any] = set()
"""torch's names of the operators whose results are recomputable; each operator adds its own."""


def recomputed_in_graphs() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
    """Contexts for ``torch.utils.checkpoint`` that are to a compiled block what ``recomputing`` is to another.

    A compiler keeps the results of all operators that it does not know. These tell it of ours which ones backward may
    compute again; what it does with torch's own it decides itself, as everywhere.
    """
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE if operator in OF_LITTLE_COST else CheckpointPolicy.PREFER_SAVE


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Autograd keeps no recomputable result of what runs within, unless it is compiled."""
    token = _known.set({})
    try:
        with torch.autograd.graph.saved_tensors_hooks(_keep, _get):
            yield
    finally:
        _known.reset(token)


def autocast_dtype(device: str) -> torch.dtype | None:
    """To which products are cast on a type of device, if they are."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def lowered(x: Tensor) -> Tensor:
    """x as autocast gives it to a product: cast here, so that backward need not keep it where it is recomputable."""
    dtype = autocast_dtype(x.device.type) if x.dtype == torch.float32 else None
    return x if dtype is None else recomputable(Tensor.to, x, dtype)


def _keep(tensor: Tensor) -> _Kept | _Recipe:
    results = _known.get()
    known = results.get(_memory(tensor)) if results else None
    return (known and known.recipe_of(tensor)) or _Kept(tensor)


def _get(kept: Any) -> Any:
    return kept.get() if isinstance(kept, (_Kept, _Recipe)) else kept


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, strides and offset, as ``torch.as_strided`` takes them."""
    return tensor.shape, tensor.stride(), tensor.storage_offset()
