"""``doctor``: all checks, of this machine or of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from udit.diagnosis import machine, software
from udit.diagnosis.finding import Finding
from udit.diagnosis.run import check_run
from udit.errors import require_type

CHECKS: tuple[Callable[[], Iterable[Finding]], ...] = (
    machine.processor,
    machine.threads,
    machine.memory,
    machine.disk,
    machine.gpu,
    software.versions,
    software.reach_hub,
    machine.compiler,
    machine.kernels,
)
"""Of the machine, in the order of the report."""


def doctor(run: str | Path | None = None) -> Iterator[Finding]:
    """Looks for what is wrong or slow on this machine, or for what is odd in a run.

    The machine: processor, threads, memory, disk, GPU, installed versions, the hub (two seconds at most), and compiled
    kernels, whose results are compared with torch's in float64. A run: progress, checkpoints, loss, gradients, time
    spent waiting for images, number of images, EMA, scores.

    Args:
        run: folder of a training run, which may be training; None looks at the machine.

    Yields:
        Findings, as soon as each is made.

    Raises:
        UserError: ``run`` is no run folder.
    """
    if run is not None:
        require_type("run", run, (str, Path), "give the folder of a run")
        yield from check_run(Path(run))
        return
    for check in CHECKS:
        yield from check()
