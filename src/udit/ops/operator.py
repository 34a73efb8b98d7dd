"""What an operator is, and the one place where a kernel is chosen for a call.

An operator has a reference in torch, which runs anywhere and has derivatives of any order, and kernels by device. A
kernel is a module that is imported when a tensor of its device is first met. A call runs a kernel if there is one for
the device that is allowed (``UDIT_KERNELS``, ``kernels``), available and accepts the arguments. Exported programs,
transformations of ``torch.func``, forward-mode derivatives and foreign tensor subclasses take the reference, and so
does a gradient that is to be differentiated again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from udit.errors import UserError
from udit.ops import surroundings
from udit.ops.recompute import OF_LITTLE_COST, recomputable

Setting = Literal["off", "cpu", "all"]
"""Which kernels are allowed."""
Device = str
"""A type of device as torch names it, "cpu" or "cuda"; "default" is any."""
ANYWHERE = "default"
NO_KERNELS = "torch's own"
"""What ``describe`` says where none runs."""
RENAMED = {"fused_attention": "grid_attention", "fused_norm": "gated_sum, modulated_norm", "scan": "selective_scan"}
"""Names in ``describe`` of versions before 0.2, and what the same kernels are called now."""
OPERATORS: dict[str, Operator] = {}
"""All that are defined, by name."""


class Kernel(Protocol):
    """The module of an operator for one device.

    It has a function for each of the operator's ``Function``s besides; or, around a function of another package that
    brings its own gradient, ``apply`` with the operator's arguments.
    """

    def available(self) -> bool:
        """Whether it can run here; it is built at the first call."""

    def loaded(self) -> bool:
        """Whether it is known to be available; a compiler of graphs cannot wait for a kernel to be built."""

    def accepts(self, *arguments: Any) -> bool:
        """Whether it computes this call, by element types, shapes and options."""


class Function:
    """A function that kernels implement, as torch's operator ``udit::NAME``.

    Args:
        schema: in torch's notation, beginning with the name.
        fake: the results' shapes and types without their contents, from the same arguments.
        kernels: by device, the module that has a function of the same name.
        flops: from the arguments' shapes, floating-point operations; None where they are too few to count.
    """

    def __init__(
        self,
        schema: str,
        fake: Callable[..., Any],
        kernels: Mapping[Device, str],
        flops: Callable[..., int] | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        self.modules = dict(kernels)
        self._implementations = {device: self._lazily(module) for device, module in kernels.items()}
        qualified = f"udit::{self.name}"
        torch.library.define(qualified, schema.removeprefix(self.name))
        for device, implementation in list(self._implementations.items()):
            torch.library.impl(qualified, device, implementation)
        torch.library.register_fake(qualified, fake)
        self.operator = getattr(torch.ops.udit, self.name)
        if flops:
            register_flop_formula(self.operator)(flops)

    def _lazily(self, module: str) -> Callable[..., Any]:
        def implementation(*arguments: Any) -> Any:
            function = getattr(_imported(module), self.name)
            self._implementations.update(dict.fromkeys(devices, function))  # for calls past the dispatcher
            return function(*arguments)

        devices = [device for device, name in self.modules.items() if name == module]
        return implementation

    def __call__(self, *arguments: Any) -> Any:
        """Runs the kernel of the first tensor's device.

        Torch's dispatcher takes 40 us, as long as the work on a small map, so it is skipped where neither autograd nor
        a compiler, tracer, profiler or mode needs it.
        """
        if surroundings.observed() or not surroundings.plain(arguments):
            return self.operator(*arguments)
        device = arguments[0].device.type
        return (self._implementations.get(device) or self._implementations[ANYWHERE])(*arguments)


class Added(NamedTuple):
    """Kept for backward in place of an argument whose values no gradient depends on."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def zeros(self) -> Tensor:
        """A tensor of that shape, dtype and device."""
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


class Saved(NamedTuple):
    """What an operator's gradient is computed from."""

    inputs: tuple[Any, ...]
    """The arguments, ``Added`` or None in the place of tensors that are only added."""
    extras: tuple[Tensor, ...]
    """The kernel's further results; the output comes first where the operator has ``output_needed``."""
    needed: Sequence[bool]
    """For each argument, whether its gradient is needed."""


Gradient = Callable[[Tensor, Saved], tuple[Tensor | None, ...]]
"""From the output's gradient to those of all arguments; it may call ``Function``s, which have no derivative."""


class Operator(Function):
    """A part of networks that kernels compute faster than torch's own operators do.

    Args:
        schema: in torch's notation, beginning with the name; the kernel returns the output, or a tuple of it and of
            what its gradient needs besides.
        reference: the same in torch, without the extra results.
        fake: as in ``Function``.
        gradient: of the kernel.
        kernels: by device, the modules that implement ``Kernel``.
        flops: as in ``Function``.
        recompute: whether its result costs so little that backward may compute it again (``recompute.py``).
        added: names of arguments that are only added to something: their values are not kept for backward.
        output_needed: whether the gradient is computed from the output too.
        otherwise: runs where there is no kernel; the reference if None. Unlike a kernel it runs on every device, and
            unlike the reference it need not have derivatives of all orders.
        compiled: whether its kernels are built and so named by ``describe``.
    """

    def __init__(
        self,
        schema: str,
        reference: Callable[..., Tensor],
        fake: Callable[..., Any],
        gradient: Gradient,
        kernels: Mapping[Device, str],
        *,
        flops: Callable[..., int] | None = None,
        recompute: bool = False,
        added: Sequence[str] = (),
        output_needed: bool = False,
        otherwise: Callable[..., Tensor] | None = None,
        compiled: bool = True,
    ) -> None:
        super().__init__(schema, fake, kernels, flops)
        self.reference = reference
        self.recompute = recompute
        self.compiled = compiled
        self.otherwise = otherwise or reference
        self._found: dict[tuple[Device, Setting], tuple[Callable[..., bool], Callable[..., Tensor]]] = {}
        self._ready: dict[Device, Kernel] = {}
        self._gradient = gradient
        self._output_needed = output_needed
        names = [argument.name for argument in self.operator.default._schema.arguments]
        self._added = [name in added for name in names]
        torch.library.register_autograd(f"udit::{self.name}", self._backward, setup_context=self._keep)
        if recompute:
            OF_LITTLE_COST.add(self.operator.default)
        OPERATORS[self.name] = self

    def __call__(self, *arguments: Any) -> Tensor:
        """The output, by a kernel or in torch; all arguments in their places, the first of them a tensor."""
        function = self.chosen(arguments)
        return recomputable(function, *arguments) if self.recompute else function(*arguments)

    def chosen(self, arguments: tuple[Any, ...]) -> Callable[..., Tensor]:
        """What computes this call: ``run_kernel``, ``otherwise`` or ``reference``."""
        if surroundings.transformed() or (not surroundings.plain(arguments) and surroundings.foreign(arguments)):
            return self.reference
        device, allowed = arguments[0].device.type, setting()
        if surroundings.compiling():
            if surroundings.exporting():
                return self.reference
            if not _loaded(self.name, device, allowed) or not self._ready[device].accepts(*arguments):
                return self.otherwise
            return self.run_kernel
        accepts, run = self._found.get((device, allowed)) or self._find(device, allowed)
        return run if accepts(*arguments) else self.otherwise

    def _find(self, device: Device, allowed: Setting) -> tuple[Callable[..., bool], Callable[..., Tensor]]:
        """Whether a call is a kernel's, and what computes it then; looked up once."""
        kernel = self._kernel(device) if self.usable(device, allowed) else None
        found = (_nothing, self.otherwise) if kernel is None else (kernel.accepts, self._run(kernel))
        self._found[device, allowed] = found
        return found

    def _run(self, kernel: Kernel) -> Callable[..., Tensor]:
        return getattr(kernel, "apply", self.run_kernel)

    def run_kernel(self, *arguments: Any) -> Tensor:
        """The output by the kernel of the first tensor's device."""
        result = Function.__call__(self, *arguments)
        return result[0] if isinstance(result, tuple) else result

    def usable(self, device: Device, allowed: Setting) -> bool:
        """Whether there is a kernel for a device that is allowed and available."""
        return self._allows(device, allowed) and self._kernel(device).available()

    def _allows(self, device: Device, allowed: Setting) -> bool:
        if ANYWHERE in self.modules:
            return True
        return device in self.modules and (allowed == "all" or (allowed == "cpu" and device == "cpu"))

    def _kernel(self, device: Device) -> Kernel:
        return _imported(self.modules.get(device) or self.modules[ANYWHERE])

    def _keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        extras = results[0 if self._output_needed else 1 :]
        tensors, ctx.places = [*extras], []
        for x, added in zip(inputs, self._added, strict=True):
            if not isinstance(x, Tensor):
                ctx.places.append(x)
            elif added:
                ctx.places.append(Added(x.shape, x.dtype, x.device))
            else:
                ctx.places.append(_Place(len(tensors)))
                tensors.append(x)
        ctx.extras = len(extras)
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*results[1:])

    def _backward(self, ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs = tuple(tensors[place.number] if isinstance(place, _Place) else place for place in ctx.places)
        saved = Saved(inputs, tensors[: ctx.extras], ctx.needs_input_grad)
        if differentiated(grad):
            return by_reference(self.reference, grad, saved)
        return self._gradient(grad, saved)


def _nothing(*_: Any) -> bool:
    return False


class _Place(NamedTuple):
    number: int


def differentiated(grad: Tensor) -> bool:
    """Whether what backward computes from a gradient is to have derivatives itself, or to run under ``vmap``."""
    return torch.is_grad_enabled() or surroundings.transformed() or surroundings.batched(grad)


def by_reference(reference: Callable[..., Tensor], grad: Tensor, saved: Saved) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments through an operator's reference, with derivatives of their own."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = []
        for x, needed in zip(saved.inputs, saved.needed, strict=True):
            x = x.zeros() if isinstance(x, Added) else x
            # One tensor may be several arguments, each with its own gradient.
            inputs.append(x.view_as(x) if needed and x.requires_grad else x.requires_grad_() if needed else x)
        with sdpa_kernel(SDPBackend.MATH):  # torch's other attentions have no second derivative
            out = reference(*inputs)
        wanted = [x for x, needed in zip(inputs, saved.needed, strict=True) if needed]
        found = iter(torch.autograd.grad(out, wanted, grad.to(out.dtype), create_graph=again, allow_unused=True))
    return tuple(next(found) if needed else None for needed in saved.needed)


@functools.cache
def _imported(module: str) -> Kernel:
    return cast(Kernel, importlib.import_module(module))


def _loaded(name: str, device: Device, allowed: Setting) -> bool:
    operator = OPERATORS[name]
    if not operator._allows(device, allowed) or not operator._kernel(device).loaded():
        return False
    operator._ready[device] = operator._kernel(device)
    return True


_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a compiler calls it rather than reads it

# ---- which kernels are allowed ---------------------------------------------------------------------------------------

_setting: ContextVar[Setting | None] = ContextVar("kernels", default=None)


@contextlib.contextmanager
def kernels(allowed: Setting) -> Iterator[None]:
    """Allows some kernels only, within the context: "off" none, "cpu" those for the CPU, "all" all there are.

    Outside of such a context the environment variable ``UDIT_KERNELS`` decides; by default all are allowed. Graphs of
    ``torch.compile`` are compiled again where it matters.

    Raises:
        UserError: another word.
    """
    token = _setting.set(_checked(allowed, "kernels"))
    try:
        yield
    finally:
        _setting.reset(token)


def setting() -> Setting:
    """Which kernels are allowed here."""
    return _setting.get() or _environment()


@functools.cache
def _environment() -> Setting:
    return _checked(os.environ.get("UDIT_KERNELS", "all"), "UDIT_KERNELS")


_environment._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a process does not change it


def _checked(word: str, name: str) -> Setting:
    words = get_args(Setting)
    if word not in words:
        raise UserError(f"{name} is {word!r}; set it to off, cpu or all")
    return cast(Setting, word)


def describe(device: torch.device | str = "cpu") -> str | None:
    """Which kernels run on a device, for the record of a run: last bits of sums differ from those of torch's operators.

    They are built here if they were not yet. None for a device that no operator has a kernel for.
    """
    kind = torch.device(device).type
    there = sorted(name for name, operator in OPERATORS.items() if operator.compiled and kind in operator.modules)
    if not there:
        return None
    return ", ".join(name for name in there if OPERATORS[name].usable(kind, setting())) or NO_KERNELS


def current_names(description: str) -> str:
    """What ``describe`` of an older version said, in the names of this one."""
    if description == NO_KERNELS:
        return description
    names = ", ".join(RENAMED.get(name, name) for name in description.split(", "))
    return ", ".join(sorted(names.split(", ")))
