"""What the last bits of a result depend on, and the comparison with what was recorded.

Sums run in another order on another processor: torch, oneDNN and MKL choose their loops by instruction set and caches,
and our kernels by ``-march``. So recorded bits are asked only where they were recorded. Elsewhere, and of two ways that
are not the same operations on the same shapes, a test asks closeness, to a limit from float32 (``rounding.py``).
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from udit.ops import build

Numbers = Tensor | float | Sequence[float] | Mapping[str, "Numbers"]
"""What is recorded: a tensor, a number, a list of them, or any of these by name."""


@cache
def this_processor() -> dict[str, str]:
    """What bits depend on: torch, the processor's model, the instruction sets of torch, oneDNN and MKL, the kernels."""
    compiler = build.find_compiler()
    version = (
        subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout if compiler else ""
    )
    asked = (
        f"{name}={os.environ[name]}" for name in ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS") if name in os.environ
    )
    return {
        "torch": torch.__version__,
        "processor": _model(),
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *asked]),
        "kernels": f"{os.environ.get('UDIT_MARCH') or 'native'}, {version.splitlines()[0]}" if version else "none",
    }


def _model() -> str:
    """The processor's model as Linux reports it, else the name of its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    told = [facts.get(name, "") for name in ("model name", "cpu family", "model")]
    return f"{told[0]} ({told[1]}/{told[2]})" if all(told) else platform.processor() or platform.machine()


def same_bits_or_close(
    found: Numbers, recorded: Numbers, recorded_on: Mapping[str, str], *, rtol: float, atol: float = 0.0
) -> None:
    """Asserts the recorded bits on the processor that recorded them, and closeness on every processor.

    Args:
        found: what this process computed.
        recorded: what was recorded, of the same structure.
        recorded_on: ``this_processor()`` at that time.
        rtol: relative limit elsewhere.
        atol: absolute limit elsewhere.

    Raises:
        AssertionError: they differ.
    """
    if dict(recorded_on) == this_processor():
        rtol = atol = 0.0
    torch.testing.assert_close(found, recorded, rtol=rtol, atol=atol, equal_nan=True)
