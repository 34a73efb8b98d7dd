"""Results that cost little, made again in backward instead of kept (Chen et al. 2016, on training in sublinear memory).

A network calls what is cheap through ``cheap``. While a block runs within ``forgetting``, autograd keeps such a result
as how it was made; backward makes it when it is asked for, once, and lets it go with the last who needs it. The bits
are those of the first time.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class _Recipe:
    """A function, its arguments, autocast as it was, and for a while what it returns."""

    def __init__(self, function: Callable[..., Tensor], arguments: tuple[Any, ...], device: str) -> None:
        self.function = function
        self.arguments = arguments
        self.device = device
        self.cast = autocast_dtype(device)
        self.made: Tensor | None = None

    def make(self) -> Tensor:
        """The result, from arguments that may have to be made themselves."""
        if self.made is None:
            arguments = map(_unpack, self.arguments)
            with torch.no_grad():
                if self.cast == autocast_dtype(self.device):
                    self.made = self.function(*arguments)
                else:
                    dtype, enabled = self.cast or torch.float32, self.cast is not None
                    with torch.autocast(self.device, dtype, enabled, cache_enabled=False):
                        self.made = self.function(*arguments)
        return self.made


class _Made:
    """A cheap result that is there."""

    def __init__(self, tensor: Tensor, recipe: _Recipe) -> None:
        self.tensor = weakref.ref(tensor)
        self.version = tensor._version
        self.recipe = recipe

    def recipe_of(self, tensor: Tensor) -> _Recipe | None:
        """How to make a tensor in the result's memory: the result itself or a view; None if anything changed."""
        mine = self.tensor()
        if mine is None or tensor._version != self.version or tensor.dtype != mine.dtype:
            return None
        if (mine.shape, mine.stride()) == (tensor.shape, tensor.stride()):
            return self.recipe
        view = self.recipe, tensor.shape, tensor.stride(), tensor.storage_offset()
        return _Recipe(torch.as_strided, view, self.recipe.device)


_made: dict[int, _Made] | None = None
"""By storage, the cheap results of the block that runs; None outside ``forgetting``."""


def cheap(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """``function(*arguments)``, which backward may ask for again: no randomness, nothing changed in place."""
    out = function(*arguments)
    if _made is not None and torch.is_grad_enabled():
        recipe = _Recipe(function, tuple(map(_packed, arguments)), out.device.type)
        _made[_place(out)] = _Made(out, recipe)
    return out


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Autograd keeps no cheap result of what runs within. Backward must follow outside."""
    global _made
    before, _made = _made, {}
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _made = before


def autocast_dtype(device: str) -> torch.dtype | None:
    """To which products are cast on a type of device, if they are."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _pack(tensor: Tensor) -> Tensor | _Recipe:
    made = _made.get(_place(tensor)) if _made else None
    return (made and made.recipe_of(tensor)) or tensor


def _packed(argument: Any) -> Any:
    kept = _pack(argument) if isinstance(argument, Tensor) else argument
    return kept.detach() if isinstance(kept, Tensor) else kept


def _unpack(kept: Any) -> Any:
    return kept.make() if isinstance(kept, _Recipe) else kept
