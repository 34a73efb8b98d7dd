"""The selective scan compiled for this CPU: built by the machine's C++ compiler on first use, kept in a cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
VECTORS = {
    "AVX2": ("-mavx2", "-mfma"),
    "AVX512": ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}
"""By torch's name of what the CPU can do; not -march=native, as machines of several kinds may share a cache."""
DTYPES = (torch.float32, torch.float64)


def cache_folder() -> Path:
    """Where compiled kernels are kept: $UDIT_CACHE, or udit in the user's cache folder."""
    named = os.environ.get("UDIT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "udit"


def compiled(compiler: str, folder: Path) -> Path:
    """The library's file in ``folder``, compiled if it is not there yet.

    torch's own builder (``torch.utils.cpp_extension.load``) needs ninja, and a killed build leaves a lock on which
    every later process waits. Here two processes may compile at once, and the last one's file stays.

    Raises:
        OSError, subprocess.SubprocessError: no such compiler, it fails, or the folder cannot be written.
    """
    flags = [*FLAGS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())]
    key = hashlib.sha256(" ".join([compiler, *flags]).encode() + SOURCE.read_bytes()).hexdigest()[:16]
    library = folder / f"selective-scan-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as building:
            made = Path(building) / "scan.so"
            command = [compiler, *flags, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            made.replace(library)
    return library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None (told once, in a warning) where they cannot be compiled or loaded."""
    compiler = os.environ.get("CXX", "c++")
    try:
        return ctypes.CDLL(str(compiled(compiler, cache_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None)
        reason = " ".join((said.decode(errors="replace") if said else str(error)).split())[:200]
        warnings.warn(
            f"the selective scan runs in PyTorch, several times slower, because {compiler} cannot compile it here "
            f"({reason}); install a C++ compiler with OpenMP, or name one in CXX",
            stacklevel=2,
        )
        return None


def kernel(name: str, like: Tensor) -> Callable[[Sequence[Tensor], Sequence[int]], Any] | None:
    """A function of the library for tensors like ``like``; None where they are no CPU's or nothing is compiled.

    It takes contiguous tensors of one dtype, as the C++ function orders them, and the sizes.
    """
    if like.device.type != "cpu" or like.dtype not in DTYPES or (found := library()) is None:
        return None
    function = found[f"{name}_{str(like.dtype).removeprefix('torch.')}"]

    def run(tensors: Sequence[Tensor], sizes: Sequence[int]) -> None:
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        function(*pointers, *map(ctypes.c_long, sizes), ctypes.c_int(torch.get_num_threads()))

    return run
