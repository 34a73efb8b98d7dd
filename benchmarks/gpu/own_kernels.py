"""What an operator of the library launches on a GPU: torch sees one call, and its CUDA module makes several.

The module's function is run with tensors without contents. Triton's launches are noted and not made; torch's operators
beside them are counted as everywhere.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._pytree import tree_leaves

Launch = tuple[str, int]
"""A kernel's name, and the bytes of all tensors that it is given, each once."""


def implementation(func: Any) -> Callable[..., Any] | None:
    """The CUDA function of an operator of ours; None of other operators, and of ours without one."""
    namespace, _, name = str(func).partition(".")
    if namespace != "udit":
        return None
    name = name.partition(".")[0]
    from udit.ops.operator import OPERATORS

    modules = {module for operator in OPERATORS.values() if (module := operator.modules.get("cuda"))}
    found = (getattr(importlib.import_module(module), name, None) for module in sorted(modules))
    return next((function for function in found if function is not None), None)


@contextlib.contextmanager
def noted() -> Iterator[list[Launch]]:
    """Context in which Triton's kernels are noted in place of being launched."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def run(self: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
        moved: dict[Any, int] = {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                size = min(tensor.numel() * tensor.element_size(), storage.nbytes())
                moved.setdefault((storage._cdata, tensor.storage_offset()), size)
        found.append((self.__name__, sum(moved.values())))

    with mock.patch.object(JITFunction, "run", run):
        yield found
