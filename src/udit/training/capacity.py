"""The memory at hand, and what to do where a training step takes more."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from udit.data.batches import share_of
from udit.errors import RunError, UserError, one_line, ran_out_of_memory
from udit.models.build import bare
from udit.run.config import Run

if TYPE_CHECKING:
    from udit.training.memory import Memory

log = logging.getLogger(__name__)
PRECISE = 0.9
"""The estimate errs by less than this leaves (``tests/test_memory.py``): what exceeds the most there is by more is
refused."""
UNLIMITED = 2**60
"""Bytes from which on a control group's limit is none."""


@dataclass(frozen=True)
class AtHand:
    """How much memory a process can take."""

    free: int
    """Bytes now."""
    most: int
    """Bytes if every other program gave back its own."""
    where: str
    """Who sets the limit, in words."""


def at_hand(device: torch.device, sharers: int = 1, root: Path = Path("/")) -> AtHand | None:
    """The tightest limit on the memory of a process; None where the system tells none.

    Looks at a GPU's own memory, or at the machine's, the control groups' (containers, Slurm, systemd) and ``ulimit``.

    Args:
        device: where tensors are.
        sharers: processes on this machine that take as much each.
        root: of the file system with /proc and /sys.
    """
    if device.type == "cuda":
        free, most = torch.cuda.mem_get_info(device)
        return AtHand(free, most, f"on {torch.cuda.get_device_name(device)}")
    if device.type == "mps":
        most = torch.mps.recommended_max_memory()
        return AtHand(most - torch.mps.driver_allocated_memory(), most, "on the GPU")
    shared = [AtHand(a.free // sharers, a.most // sharers, a.where) for a in (*_machine(root), *_groups(root))]
    return min([*shared, *_ulimits(root)], key=lambda limit: limit.free, default=None)


def _machine(root: Path) -> Iterator[AtHand]:
    lines = (line.split() for line in _text(root / "proc/meminfo").splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
    if "MemAvailable" in kib and "MemTotal" in kib:
        most = kib["MemTotal"] + kib.get("SwapTotal", 0)
        yield AtHand(1024 * kib["MemAvailable"], 1024 * most, "on this machine")
    elif "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield AtHand(total, total, "on this machine")


def _groups(root: Path) -> Iterator[AtHand]:
    """The limits of the process's control group, version 1 or 2, and of all groups above it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "sys/fs/cgroup/memory"
        else:
            continue
        own = base / path.lstrip("/")
        for folder in [own, *own.parents]:  # a container may see its own group as the topmost
            if folder.is_relative_to(base):
                limit, used = (_text(folder / name).strip() for name in names[:2])
                if limit.isdigit() and used.isdigit() and int(limit) < UNLIMITED:
                    stat = dict(row.split(maxsplit=1) for row in _text(folder / "memory.stat").splitlines())
                    taken = int(used) - int(stat.get(names[2], 0))  # cached files make room
                    yield AtHand(max(0, int(limit) - taken), int(limit), "within this process's control group")


def _ulimits(root: Path) -> Iterator[AtHand]:
    pages = _text(root / "proc/self/statm").split()
    for kind, column, name in ((resource.RLIMIT_AS, 0, "ulimit -v"), (resource.RLIMIT_DATA, 5, "ulimit -d")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            taken = int(pages[column]) * resource.getpagesize() if len(pages) > column else 0
            left = max(0, limit - taken)
            yield AtHand(left, left, f"within {name}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def shortage(run: Run, memory: Memory, limit: AtHand) -> str | None:
    """Why a step does not fit, and what to turn down, in one line; None if it fits."""
    if memory.total <= limit.free:
        return None
    rest = memory.total - memory.activations
    fits = int(memory.batch * (limit.free - rest) / memory.activations)
    most = f"about {fits:,} would fit" if fits >= 1 else "not even one would fit, take a smaller model"
    return (
        f"a training step takes about {memory.total / 1e9:,.1f} GB for {memory.batch:,} images per backward pass and "
        f"{limit.free / 1e9:,.1f} GB are free {limit.where} ({most}); {advice(run)}"
    )


def advice(run: Run) -> str:
    """What to turn down where memory is short."""
    ways = ["lower training.batch_size", f"raise training.accumulation (now {run.training.accumulation})"]
    stored = run.training.checkpoint_activations
    more = {False: ["selective", "true"], "selective": ["true"], True: []}[stored]
    ways += [f"set training.checkpoint_activations={' or '.join(more)}"] if more else []
    return ", ".join(ways[:-1]) + f", or {ways[-1]}"


def check_memory(run: Run, ranks: int, device: torch.device, sharers: int) -> None:
    """Compares a step's memory with that at hand before the first one.

    What exceeds all there is on a CPU, however much other programs gave back, is refused: the kernel would kill the
    process without a word, or another one. All else is a warning. Memory may become free; a GPU's runs out in one line
    and harms nobody, and neither its operators nor compiled ones are those of the estimate.

    Args:
        run: what is trained.
        ranks: over how many processes.
        device: where this one trains.
        sharers: processes on this machine.

    Raises:
        UserError: it cannot fit.
    """
    limit = at_hand(device, sharers)
    if limit is None or _surely_fits(run, ranks, limit):
        return
    from udit.training.memory import estimate  # takes as long to import as many steps of a small model

    memory = estimate(run, ranks)
    short = shortage(run, memory, limit)
    if short is None:
        return
    if device.type == "cpu" and not run.training.compile and PRECISE * memory.total > limit.most:
        raise UserError(short)
    log.warning("%s", short)


def _surely_fits(run: Run, ranks: int, limit: AtHand) -> bool:
    """Whether a step is so small that it needs no estimate.

    A layer uses each weight at most once at each position, and keeps far less than one number for each such product.
    """
    batch = share_of(run.training.batch_size, run.training.accumulation, ranks)
    with torch.device("meta"):
        weights = sum(p.numel() for p in bare(run.model).parameters())
    averages = len(run.training.posthoc_ema.sigma_rels) if run.training.posthoc_ema else 0
    return 4 * weights * (batch * math.prod(run.model.input_shape()[1:]) + 6 + averages) < limit.free / 2


@contextlib.contextmanager
def memory_errors_as_run_errors(run: Run) -> Iterator[None]:
    """Context in which running out of memory is one line of the run's.

    Raises:
        RunError: in place of Python's or torch's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        detail = one_line(error).rsplit("] ", 1)[-1]
        cause = f" ({detail})" if detail else ""
        raise RunError(f"out of memory{cause}; what is saved is intact; {advice(run)}") from None
