"""What kernels for NVIDIA GPUs share: whether they can run here, and how they are launched.

They are written in Triton, which builds them for the device at hand when they first run. ``gpu.py`` of an operator has
its functions and imports no Triton; ``kernels.py`` beside it has the kernels. Arithmetic is float32, and sums run
in an order that depends on shapes alone, so bits do not depend on the device's scheduling.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import subprocess
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Element types of maps that kernels take."""
OLDEST = 8, 0
"""Compute capability from which there are products in bfloat16."""


@functools.cache
def available() -> bool:
    """Whether Triton is installed and can build for the NVIDIA GPUs at hand; AMD's take torch's own operators."""
    if torch.version.hip is not None or not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    if any(torch.cuda.get_device_capability(i) < OLDEST for i in range(torch.cuda.device_count())):
        return False
    from triton.runtime import driver

    try:
        return bool(driver.active.get_current_target().backend == "cuda")  # builds its helpers by a C compiler
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        detail = " ".join(str(error).split())[:200]
        log.warning("Triton cannot build kernels here, torch's own, slower operators run: %s", detail)
        return False


def launch(kernel: Any, programs: int, *arguments: Any, warps: int, stages: int = 1, **constants: Any) -> None:
    """Runs a kernel on the first argument's device.

    Args:
        kernel: what ``triton.jit`` made.
        programs: their number.
        arguments: in the kernel's order; the first is a tensor.
        warps: of a program, each 32 threads.
        stages: of loops whose loads run ahead.
        constants: arguments that are compiled in.
    """
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, num_warps=warps, num_stages=stages, **constants)


def power(count: int, least: int = 1) -> int:
    """The smallest power of two that is not below ``count`` and ``least``: sides of Triton's blocks."""
    return max(least, 1 << (count - 1).bit_length())


def plain(x: Tensor, like: Tensor) -> Tensor:
    """Contiguous, in the element type of ``like``."""
    return x.to(like.dtype).contiguous()


def factors(x: Tensor, batch: int) -> tuple[Tensor, int]:
    """[B, ..., D], B * D elements with channels side by side, and the elements from one row to the next."""
    if x.shape[0] != batch or x.numel() != batch * x.shape[-1]:
        x = x.reshape(batch, -1)
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x, x.stride(0)


def bands(rows: int, others: int) -> int:
    """Into how many bands a sum over a sample's rows is split, so that there are about 256 programs.

    Args:
        rows: N of a sample.
        others: programs there are without bands.
    """
    return min(-(-rows // 64), max(1, 256 // max(1, others)))


def sums(factor: Tensor, batch: int, count: int, width: int) -> Tensor:
    """Room for the sums over each band of a factor's gradient, [B, bands, D]; float32 if they are to be added up."""
    return factor.new_empty(batch, count, width, dtype=factor.dtype if count == 1 else torch.float32)


def summed(parts: Tensor, factor: Tensor) -> Tensor:
    """The gradient of a factor from the sums over its bands."""
    return (parts if parts.shape[1] == 1 else parts.sum(1).to(factor.dtype)).view(factor.shape)
