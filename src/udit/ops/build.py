"""Compiled kernels: C++ files that are built at first use and kept in the user's cache, and their functions.

A kernel is plain C++ behind a C interface. It knows nothing of torch, so it builds in seconds with any compiler and
does not depend on torch's version. Each function's C signature is declared once, where it is called from Python;
tensors of another type, device or layout than declared are an error.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from udit import files

log = logging.getLogger(__name__)

HEADERS = Path(__file__).parent
"""Folder of the headers that kernels share."""
SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float64: "f64"}
"""Suffix of a C function's name, by element type; no function is compiled for all of them."""
FLAGS = ("-O3", "-fno-math-errno", "-std=c++17", "-fPIC", f"-I{HEADERS}")
THREADED = ("-fopenmp",)
"""Compiled in but not linked: torch has loaded the one OpenMP runtime that a process should have, and its symbols are
found when the kernel is loaded. Where the compiler uses another runtime, a kernel of one thread is built instead."""


@dataclass(frozen=True)
class Pointer:
    """A C argument that is a tensor in the CPU's memory, handed over by its address."""

    dtype: torch.dtype | None = None
    """Its element type; None is the one that the function is compiled for."""
    optional: bool = False
    """Whether it may be None, which is a null pointer."""
    rows: bool = False
    """Whether its rows may have a stride, which is another argument; otherwise it must be contiguous."""


INT = ctypes.c_int
"""A C argument that is a whole number."""
MAP, MAYBE_MAP = Pointer(), Pointer(optional=True)
FLOATS, MAYBE_FLOATS = Pointer(torch.float32), Pointer(torch.float32, optional=True)
ROWS = Pointer(torch.float32, rows=True)


class Library:
    """The functions of one C++ file.

    Args:
        name: what logs and the file in the cache call it.
        source: the C++ file.
    """

    def __init__(self, name: str, source: Path) -> None:
        self.name = name
        self.source = source
        self._asked = False
        self._library: ctypes.CDLL | None = None
        self._constants: dict[str, int] = {}

    def available(self) -> bool:
        """Whether the library could be built; it is built at the first call, once per process.

        The compiler is ``$CXX``, else c++, g++ or clang++, the first that is installed.
        """
        if not self._asked:
            self._library = self._load()
            self._asked = True
        return self._library is not None

    def loaded(self) -> bool:
        """Whether ``available`` was called before, and the library could be built."""
        return self._library is not None

    def constant(self, name: str) -> int:
        """A constant of the C++ file: what its function ``int NAME()`` returns."""
        if name not in self._constants:
            function = self.symbol(name)
            function.argtypes, function.restype = [], ctypes.c_int
            self._constants[name] = int(function())
        return self._constants[name]

    def symbol(self, name: str) -> Any:
        """A C function by its name."""
        assert self.available(), f"{self.name} was called without its kernel"
        return getattr(self._library, name)

    def _load(self) -> ctypes.CDLL | None:
        compiler = find_compiler()
        if compiler is None:
            _tell_of_no_compiler()
            return None
        try:
            return load(self.name, self.source, compiler, cache_folder())
        except (OSError, subprocess.SubprocessError) as error:
            detail = " ".join(str(getattr(error, "stderr", None) or error).split())[:200]
            log.warning("%s was not compiled, torch's own, slower operator runs: %s", self.name, detail)
            return None


class CFunction:
    """A function ``NAME_TYPE`` of a library: its arguments as declared, then ``int threads``.

    Args:
        library: that holds it.
        name: without the element type's suffix.
        kinds: of its arguments.
    """

    def __init__(self, library: Library, name: str, *kinds: Pointer | type[ctypes.c_int]) -> None:
        self.library, self.name, self.kinds = library, name, kinds
        self._typed: dict[torch.dtype, tuple[Any, list[tuple[torch.dtype, Pointer] | None]]] = {}

    def __call__(self, dtype: torch.dtype, *arguments: Tensor | int | None) -> None:
        """Calls the function that is compiled for ``dtype`` with torch's number of threads.

        Raises:
            RuntimeError: a tensor is not as declared.
        """
        function, kinds = self._typed.get(dtype) or self._declare(dtype)
        given: list[Any] = []
        for argument, kind in zip(arguments, kinds, strict=True):
            if kind is None:  # a number
                given.append(argument)
            elif isinstance(argument, Tensor):
                wanted, pointer = kind
                right = argument.is_cpu and argument.dtype == wanted
                if not right or not (argument.is_contiguous() or pointer.rows):
                    self._refuse(argument, wanted)
                given.append(argument.data_ptr())
            elif argument is None and kind[1].optional:
                given.append(None)
            else:
                raise RuntimeError(f"{self.name} takes a tensor and was given {argument!r}")
        function(*given, torch.get_num_threads())

    def _declare(self, dtype: torch.dtype) -> tuple[Any, list[tuple[torch.dtype, Pointer] | None]]:
        """The C function, and for each argument the element type and the kind of a tensor, None of a number."""
        function = self.library.symbol(f"{self.name}_{SUFFIX[dtype]}")
        ctypes_of = (ctypes.c_void_p if isinstance(kind, Pointer) else kind for kind in self.kinds)
        function.argtypes, function.restype = [*ctypes_of, ctypes.c_int], None
        kinds = [(kind.dtype or dtype, kind) if isinstance(kind, Pointer) else None for kind in self.kinds]
        self._typed[dtype] = function, kinds
        return function, kinds

    def _refuse(self, tensor: Tensor, wanted: torch.dtype) -> NoReturn:
        if not tensor.is_cpu:
            raise RuntimeError(f"{self.name} runs on the CPU and was given a tensor on {tensor.device}")
        raise RuntimeError(
            f"{self.name} takes a contiguous tensor of {wanted} and was given one of {tensor.dtype} with shape "
            f"{list(tensor.shape)} and strides {list(tensor.stride())}"
        )


@functools.cache
def _tell_of_no_compiler() -> None:
    """Once in a process, whatever the number of kernels."""
    asked = os.environ.get("CXX")
    looked = f"CXX is {asked!r}, which is not there" if asked else "no c++, g++ or clang++"
    log.info("no C++ compiler (%s): torch's own operators run in place of compiled ones, more slowly", looked)


def find_compiler() -> str | None:
    """Path of the C++ compiler, or None."""
    asked = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [asked] if asked else ["c++", "g++", "clang++"])), None)


def cache_folder() -> Path:
    """Where kernels are kept: ``$UDIT_CACHE``, or udit in the user's cache folder."""
    named = os.environ.get("UDIT_CACHE")
    return Path(named) if named else files.cache_folder()


def flags() -> tuple[str, ...]:
    """What every kernel is compiled with; ``$UDIT_MARCH`` names the processor to compile for, else it is this one."""
    return *FLAGS, f"-march={os.environ.get('UDIT_MARCH') or 'native'}"


def load(name: str, source: Path, compiler: str, folder: Path) -> ctypes.CDLL:
    """The library of a C++ file from ``folder``, where it is built first if it is not there.

    It appears under its name when it is complete, so that processes may build at the same time. Where the folder cannot
    be written, a temporary one serves this process.

    Raises:
        OSError: it does not load.
        subprocess.CalledProcessError: it does not compile.
    """
    path: Path | None = folder / f"{name}-{key(source, compiler)}.so"
    with contextlib.suppress(OSError):  # absent, or cut off by a full disk: built again
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
            _run(compiler, *flags(), *extra, "-c", str(source), "-o", str(part))
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


@functools.cache
def _processor() -> str:
    cpu = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return cpu


@functools.cache
def _version(compiler: str) -> str:
    return _run(compiler, "--version")


def key(source: Path, compiler: str) -> str:
    """Changes with all that the binary depends on: source, headers, compiler, flags and processor."""
    headers = sorted({*HEADERS.glob("*.h"), *source.parent.glob("*.h")})
    texts = [path.read_text(encoding="utf-8") for path in (source, *headers)]
    parts = [*texts, _version(compiler), " ".join(flags()).replace(str(HEADERS), ""), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
