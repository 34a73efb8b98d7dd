"""Checks of the machine: processor, threads, memory, disk, compiled kernels, GPUs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from udit import ops
from udit.diagnosis import finding
from udit.diagnosis.finding import Finding
from udit.models.build import build
from udit.ops.build import cache_folder, find_compiler, flags
from udit.training.capacity import at_hand

NETWORKS = ("U-DiT-tiny", "DiT-tiny", "ADM-tiny", "DiMSUM-tiny")
"""Networks that between them run every operator with a kernel."""
TOLERANCE = 1e-5
"""Of a network with kernels against torch's operators in float64, relative to the largest output."""
SMALL_DISK, SMALL_MEMORY = 2e9, 4e9
"""Bytes below which a check says so: a model of 100 M weights with two checkpoints, and a small training."""
BUSY = 1.5
"""Running processes for each core above which timings mean little."""


def processor() -> Iterator[Finding]:
    """Its name, its instruction set as torch uses it, and whether it is busy."""
    name = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo")
    if lines.is_file():
        text = lines.read_text(encoding="utf-8", errors="replace")
        name = next(
            (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), name
        )
    yield Finding("ok", "processor", f"{name}, {torch.backends.cpu.get_cpu_capability()}, {cores()} cores to use")
    busy = os.getloadavg()[0] / cores() if hasattr(os, "getloadavg") else 0.0
    if busy > BUSY:
        yield Finding("note", "load", f"{busy:.1f} running processes for each core", "times measured now mean little")


def cores() -> int:
    """Cores that this process may use: its affinity, and its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_of(Path("/sys/fs/cgroup/cpu.max"))
    return count if quota is None else max(1, min(count, round(quota)))


def quota_of(path: Path) -> float | None:
    """Cores of a control group's ``cpu.max``; None where there is no limit."""
    try:
        quota, period = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def threads() -> Iterator[Finding]:
    """Torch's threads for each process against the cores that are there."""
    count, there = torch.get_num_threads(), cores()
    if count > there:
        yield Finding("slow", "threads", f"torch runs {count} threads on {there} cores", f"set OMP_NUM_THREADS={there}")
    else:
        yield Finding("ok", "threads", f"{count} of {there} cores for each process")


def memory() -> Iterator[Finding]:
    """Memory that a process can take now, within the limits of its container and shell."""
    limit = at_hand(torch.device("cpu"))
    if limit is None:
        return
    text = f"{limit.free / 1e9:.1f} GB free {limit.where}"
    if limit.free < SMALL_MEMORY:
        yield Finding("slow", "memory", text, "close other programs, or train with a small training.batch_size")
    else:
        yield Finding("ok", "memory", text)


def disk() -> Iterator[Finding]:
    """Free space where runs are written, and where kernels and downloads are kept."""
    places = {"here": Path.cwd(), "kernel cache": cache_folder()}
    for name, place in places.items():
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        text = f"{name} ({there}): {free / 1e9:.1f} GB free"
        if not os.access(there, os.W_OK):
            yield Finding("wrong", "disk", f"{name} ({there}) cannot be written to", _writable(name))
        elif free < SMALL_DISK:
            yield Finding("wrong", "disk", text, "make room: a run keeps at least two checkpoints of all its state")
        else:
            yield Finding("ok", "disk", text)


def _writable(name: str) -> str:
    if name == "here":
        return "change to another folder, or give one with out=DIR"
    return "kernels are compiled at every start: set UDIT_CACHE to a folder of yours"


def compiler() -> Iterator[Finding]:
    """The C++ compiler that builds the kernels."""
    if ops.operator.setting() == "off":
        yield Finding("slow", "kernels", "UDIT_KERNELS=off: torch's operators run", "unset it")
        return
    found = find_compiler()
    if found is None:
        asked = os.environ.get("CXX")
        text = f"CXX={asked} is not there" if asked else "no C++ compiler (c++, g++, clang++)"
        yield Finding(
            "slow", "compiler", f"{text}, so torch's slower operators run", "install one, e.g. apt-get install g++"
        )
        return
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    yield Finding("ok", "compiler", f"{version.partition(chr(10))[0] or found}, {' '.join(flags()[-1:])}")
    missing = sorted(
        name
        for name, operator in ops.OPERATORS.items()
        if operator.compiled and "cpu" in operator.modules and not operator.usable("cpu", "cpu")
    )
    if missing:
        yield Finding("slow", "kernels", f"{', '.join(missing)} did not compile", "the warning above says why")


def kernels() -> Iterator[Finding]:
    """Outputs and gradients of small networks with the kernels that run here, against torch's operators in float64."""
    running = ops.describe("cpu")
    for name in NETWORKS:
        error = _difference(build(name))
        if not error <= TOLERANCE:
            yield Finding(
                "wrong",
                "kernels",
                f"{name} is {error:.1e} off its float64 result (limit {TOLERANCE:.0e})",
                f"set UDIT_KERNELS=off, remove {cache_folder()}, and report compiler and processor",
            )
            return
    yield Finding("ok", "kernels", f"right on {len(NETWORKS)} networks, forward and backward: {running}")


def _difference(model: Any) -> float:
    """Largest error of output and input gradient, relative to the largest value of each."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh network's output is 0
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    x = torch.randn(2, *config.input_shape(), generator=generator)
    t = torch.tensor([0.3, 0.7])
    found = _results(model, x, t)
    with ops.kernels("off"):
        right = _results(model.double(), x.double(), t.double())
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True))


def _results(model: Any, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    out = model(x, t)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    return out.detach(), grad


def gpu() -> Iterator[Finding]:
    """Whether a GPU is there, and whether this torch can use it."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            arch = f"sm_{about.major}{about.minor}"
            text = f"{about.name}, {about.total_memory / 1e9:.0f} GB, {arch}, CUDA {torch.version.cuda}"
            known = torch.cuda.get_arch_list()
            if known and arch not in known and not any(each.startswith("compute_") for each in known):
                yield Finding("wrong", "GPU", f"{text}: this torch has no code for it", "install a torch built for it")
            else:
                yield Finding("ok", "GPU", text)
        nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
        if torch.cuda.device_count() > 1 and not nccl:
            yield Finding("wrong", "GPU", "several, and this torch has no NCCL", "install a torch that has it")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "GPU", "Apple's, through MPS")
    elif shutil.which("nvidia-smi"):
        yield _unusable()
    else:
        yield Finding("note", "GPU", "none: everything runs on the processor")


def _unusable() -> Finding:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=finding.PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("wrong", "GPU", "nvidia-smi does not answer", "look at the driver: dmesg, nvidia-smi")
    if asked.returncode:
        detail = " ".join((asked.stdout + asked.stderr).split())[:120]
        return Finding("note", "GPU", f"nvidia-smi is installed and finds none ({detail})")
    there = asked.stdout.strip().partition("\n")[0]
    if torch.version.cuda is None:
        return Finding(
            "wrong",
            "GPU",
            f"{there}, and this torch {torch.__version__} is built for processors only",
            "install torch for CUDA: https://pytorch.org/get-started/locally",
        )
    return Finding(
        "wrong",
        "GPU",
        f"{there} (name, driver), and torch for CUDA {torch.version.cuda} cannot use it",
        "update the driver, or install a torch for an older CUDA; look at CUDA_VISIBLE_DEVICES too",
    )
