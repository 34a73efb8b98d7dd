"""Runs the numerical tests under every instruction set of this processor: ``make test-isa``.

torch, oneDNN, MKL and the compiler of our kernels are each told to do with less than the processor has. Their sums then
run in another order and without fused multiplications, as they do on another processor. The widest is left out, as
``make test`` runs under it. One setting alone: ``python tests/isa.py AVX2``.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOLD = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "UDIT_MARCH")
"""The environment variable of each library: torch, oneDNN, MKL, the kernels' compiler."""


@dataclass(frozen=True)
class Setting:
    """An instruction set in the words of those in ``TOLD``, and the processor's flags that it needs."""

    words: tuple[str, str, str, str]
    needs: frozenset[str] = frozenset()


SETTINGS = {
    "x86-64": Setting(("default", "SSE41", "SSE4_2", "x86-64")),
    "AVX2": Setting(("avx2", "AVX2", "AVX2", "x86-64-v3"), frozenset({"avx2", "fma", "bmi2"})),
    "AVX-512": Setting(
        ("avx512", "AVX512_CORE", "AVX512", "x86-64-v4"),
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ),
}
NUMERICAL = """
    ablation adapters adm align attention autoguide buckets build cache calibrate claims clips codec combine
    comparison compatibility conditions context contract convert convolution deep depthwise derivatives dic dico
    dimsum dit dropout edm extractors few_steps fidelity fields fit formats frechet grid_attention guidance hdit
    interpolation judge late latents latte learning lightningdit linear losses metrics mmdit modulated_norm moments
    mpdit neighborhood objective operators optim origin paired parity parity_format pde pipelines posthoc process
    processor prompts published publishing reader recompute reconstruction repa rotary sample scan schedule skipdit
    solvers start store studio text trainer transport udit udit_text uvit vae wan
""".split()  # noqa: SIM905 - forty lines otherwise
"""``tests/test_NAME.py`` that compare computed numbers; the others look at files, words, memory and time."""


def flags() -> set[str]:
    """What Linux says that the processor has; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def left_out(setting: Setting) -> str | None:
    """Why a setting cannot be run here, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"this is {platform.machine()}"
    missing = setting.needs - flags()
    return f"the processor has no {', '.join(sorted(missing))}" if missing else None


def run(setting: Setting) -> int:
    """Exit status of the numerical tests under a setting."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(zip(TOLD, setting.words, strict=True))
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in NUMERICAL]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", *files], cwd=ROOT, env=environment
    ).returncode


def main(names: list[str]) -> int:
    """Runs the settings of these names, or all; tells which ran and which did not, and why."""
    if unknown := [name for name in names if name not in SETTINGS]:
        sys.stderr.write(f"no setting {', '.join(unknown)}; there are {', '.join(SETTINGS)}\n")
        return 2
    told, failed = [], False
    widest = [name for name, setting in SETTINGS.items() if not left_out(setting)][-1:]
    for name in names or SETTINGS:
        reason = left_out(SETTINGS[name])
        if not names and name in widest:
            reason = "it is this processor's own, and `make test` runs it"
        if reason:
            told.append(f"{name}: left out, {reason}")
            continue
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        began = time.monotonic()
        status = run(SETTINGS[name])
        failed = failed or bool(status)
        told.append(f"{name}: {'failed' if status else 'passed'} in {time.monotonic() - began:.0f} s")
    sys.stdout.write("\n".join(told) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
