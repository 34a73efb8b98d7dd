"""The progress of every job: a bar in a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self

FIRST, LONGEST = 10.0, 60.0
"""Seconds until the first plain line, and at most between two; each wait is twice the one before."""
_shown: ContextVar[bool] = ContextVar("shown", default=True)


class Progress(Protocol):
    """What a job tells of itself while it runs; a context, which ends with it."""

    def update(self, n: float = 1) -> object:
        """Counts ``n`` more units."""

    def set_postfix(self, values: dict[str, str], /, refresh: bool = True) -> None:
        """Further facts to show, by name; ``refresh`` shows them at once."""

    def close(self) -> None:
        """Ends it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> object: ...


def progress_bar(
    total: int | None, task: str, unit: str, *, initial: int = 0, show: bool = True, leave: bool = True
) -> Progress:
    """A bar on standard error; plain lines where that is no terminal, or one without a width.

    Args:
        total: how many units there are; None where that is not known.
        task: what is done, in a word.
        unit: what is counted, in a word.
        initial: how many of them are done already.
        show: False hides it everywhere.
        leave: whether the bar stays when it is full.
    """
    visible = show and _shown.get() and os.environ.get("RANK", "0") == "0"  # of a launcher's processes, the first
    if visible and not _has_width():
        return Lines(total, task, unit, initial)
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=task, unit=unit, initial=initial, leave=leave, disable=not visible)


@contextlib.contextmanager
def progress_shown(show: bool) -> Iterator[None]:
    """Context in which False hides the progress of every job, also of those that a job starts."""
    token = _shown.set(show and _shown.get())
    try:
        yield
    finally:
        _shown.reset(token)


def _has_width() -> bool:
    """Whether standard error is a terminal that has columns; some pseudo-terminals of runners have none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return False


class Lines:
    """Progress as lines: the first after ``FIRST`` seconds, so that a short job says nothing."""

    def __init__(self, total: int | None, task: str, unit: str, initial: int = 0) -> None:
        """See ``progress_bar``."""
        self.total, self.task, self.unit = total, task, unit
        self.done = self._initial = float(initial)
        self._facts: dict[str, str] = {}
        self._began = time.monotonic()
        self._wait = FIRST
        self._next = self._began + FIRST

    def update(self, n: float = 1) -> None:
        """Counts ``n`` more units, and writes a line if one is due."""
        self.done += n
        now = time.monotonic()
        if now >= self._next:
            self._wait = min(2 * self._wait, LONGEST)
            self._next = now + self._wait
            sys.stderr.write(f"udit: {self._line(now - self._began)}\n")
            sys.stderr.flush()

    def set_postfix(self, values: dict[str, str], /, refresh: bool = True) -> None:
        """Further facts of the next line; ``refresh`` is a bar's."""
        self._facts = values

    def _line(self, elapsed: float) -> str:
        """E.g. "train: step 120 of 800, loss 0.0812, images/s 450, 0:25 left"."""
        many = f" of {self.total:,}" if self.total is not None else ""
        rate = (self.done - self._initial) / elapsed
        told = [f"{self.task}: {self.unit} {self.done:,.0f}{many}", *(f"{k} {v}" for k, v in self._facts.items())]
        if not self._facts:
            told.append(f"{rate:,.3g} {self.unit}s/s")
        if self.total is not None and rate > 0:
            told.append(f"{_clock(max(0.0, self.total - self.done) / rate)} left")
        return ", ".join(told)

    def close(self) -> None:
        """Ends it; there is nothing to wipe."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _clock(seconds: float) -> str:
    """E.g. "2:05" minutes or "3:20:00" hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def say_on_stderr(prefix: str = "udit: ") -> None:
    """Lets a process say on stderr what udit does (INFO); of other libraries, warnings alone.

    Args:
        prefix: of each line.
    """
    logging.basicConfig(format=f"{prefix}%(message)s", stream=sys.stderr)
    logging.getLogger("udit").setLevel(logging.INFO)
