"""Compiled kernels: the C++ beside this file, built at first use and kept in the user's cache.

A kernel is plain C++ behind a C interface. It knows nothing of torch, so it builds in seconds with any compiler and
outlives torch's versions. Without a compiler the caller takes torch's own operator.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
log = logging.getLogger(__name__)

KERNELS = ("convolution", "depthwise", "fused_attention", "fused_norm", "linear", "scan")
"""All there are: ``nn/NAME.cpp``."""
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float64: "f64"}
"""What a function of a kernel ends in, by its element type. No kernel has all of them."""
_LOADED: set[str] = set()
"""Kernels that this process has asked for and got."""
FLAGS = ("-O3", "-fno-math-errno", "-std=c++17", "-fPIC")
THREADED = ("-fopenmp",)
"""Compiled in but not linked: torch has loaded the one OpenMP runtime that a process should have, and its symbols are
found when the kernel is loaded. A compiler that speaks to another runtime builds a kernel of one thread instead."""


@functools.cache
def kernel(name: str) -> ctypes.CDLL | None:
    """The kernels of ``nn/NAME.cpp``, or None where they cannot be built. Asked once a process.

    The compiler is ``$CXX``, else c++, g++ or clang++, the first that is installed.
    """
    compiler = find_compiler()
    if compiler is None:
        log.info("no C++ compiler: %s runs on torch's own, slower operator", name)
        return None
    try:
        library = load(name, compiler, cache_folder())
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        log.warning(
            "%s was not compiled, torch's own, slower operator runs: %s", name, " ".join(str(detail).split())[:200]
        )
        return None
    _LOADED.add(name)
    return library


def describe() -> str:
    """Which kernels run, for the record of a run: last bits of sums differ from those of torch's operators."""
    return ", ".join(name for name in KERNELS if kernel(name)) or "torch's own"


def compiled(name: str) -> bool:
    """Whether a kernel is to be used.

    ``torch.compile`` cannot wait for a compiler while it traces and takes what is loaded (``describe`` loads all); an
    exported program keeps to torch's operators.
    """
    if torch.compiler.is_compiling():
        return name in _LOADED and not torch.compiler.is_exporting()
    return kernel(name) is not None


def operator(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function that of the operator ``udit::name`` on the CPU; the operator is defined before.

    What is decorated calls the operator. Where nobody could tell the difference it calls the function itself: the way
    through torch's dispatcher and back to Python takes 40 us, as long as the work on a small map.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        torch.library.impl(f"udit::{name}", "CPU")(function)
        through = getattr(torch.ops.udit, name)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(*args, **kwargs) if not kwargs and _unseen(args) else through(*args, **kwargs)

        return run

    return register


def _unseen(arguments: tuple[object, ...]) -> bool:
    """Whether tensors are plain, need no gradient, and no compiler, tracer, profiler or mode looks on."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(isinstance(a, Tensor) and type(a) not in (Tensor, nn.Parameter) for a in arguments)
    )


def call(name: str, function: str, dtype: torch.dtype, *arguments: Tensor | int | None) -> None:
    """A function of a kernel for elements of a type; tensors are contiguous and go in by address, threads last."""
    for a in arguments:
        if isinstance(a, Tensor) and not a.is_cpu:
            raise RuntimeError(f"{function} runs on the CPU and was handed a tensor on {a.device}")
    library = kernel(name)
    assert library is not None
    raw = (ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments)
    getattr(library, f"{function}_{SUFFIX[dtype]}")(*raw, torch.get_num_threads())


def find_compiler() -> str | None:
    """Path of the C++ compiler, or None."""
    asked = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [asked] if asked else ["c++", "g++", "clang++"])), None)


def cache_folder() -> Path:
    """Where kernels are kept: ``$UDIT_CACHE``, or udit in the user's cache folder."""
    if named := os.environ.get("UDIT_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "udit"


def architecture() -> str:
    """The instruction set that kernels are compiled for: ``UDIT_MARCH``, a value of ``-march``, or this machine's."""
    return os.environ.get("UDIT_MARCH") or "native"


def _flags() -> tuple[str, ...]:
    return *FLAGS, f"-march={architecture()}"


def load(name: str, compiler: str, folder: Path) -> ctypes.CDLL:
    """The library from ``folder``, where it is built first if it is not there.

    It appears under its name when it is whole, so that processes may build at the same time. Where the folder refuses,
    a temporary one serves this process.

    Raises:
        OSError: it does not load.
        subprocess.CalledProcessError: it does not compile.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    path: Path | None = folder / f"{name}-{_key(source, compiler)}.so"
    with contextlib.suppress(OSError):  # absent, or torn by a full disk: built anew
        return ctypes.CDLL(str(path))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = tempfile.TemporaryDirectory(dir=folder)
    except OSError:
        scratch, path = tempfile.TemporaryDirectory(), None
    with scratch:
        began = time.perf_counter()
        built = _build(source, compiler, Path(scratch.name))
        log.info("compiled %s in %.0f s (%s)", name, time.perf_counter() - began, path or "not kept: no cache folder")
        if path is not None:
            built = built.replace(path)
        return ctypes.CDLL(str(built))


def _build(source: Path, compiler: str, folder: Path) -> Path:
    """The first variant that compiles and loads."""
    for extra in (THREADED, ()):
        part, library = folder / "kernel.o", folder / f"kernel{len(extra)}.so"
        try:
            _run(compiler, *_flags(), *extra, "-c", str(source), "-o", str(part))
            _run(compiler, "-shared", str(part), "-o", str(library))
            ctypes.CDLL(str(library))
        except (OSError, subprocess.SubprocessError):
            if not extra:
                raise
        else:
            return library
    raise AssertionError("the last variant returns or raises")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout


def _key(source: Path, compiler: str) -> str:
    """Changes with all that the binary depends on: source, compiler, flags and processor."""
    cpu = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    shared = "".join(path.read_text(encoding="utf-8") for path in sorted(source.parent.glob("*.h")))
    parts = [source.read_text(encoding="utf-8"), shared, _run(compiler, "--version"), " ".join(_flags()), cpu]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
