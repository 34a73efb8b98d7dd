"""SIGINT and SIGTERM as a flag that a training loop reads between steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

PATIENCE = 2.0
"""Seconds; signals that are closer together count as one (a launcher and the terminal may both send it)."""


class StopFlag:
    """Context in which the first SIGINT or SIGTERM requests a stop and a later one ends the process at once.

    Pass it to ``udit.train`` or ``Trainer.steps``, so that Ctrl-C ends a training after the current step:
    ``with StopFlag() as stop: udit.train(run, stop=stop)``. Outside the main thread it does nothing, as Python delivers
    signals there only.
    """

    def __init__(self) -> None:
        self.signal: int = 0
        """The number of the signal that requested it, or 0."""
        self._first = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal and time.monotonic() - self._first > PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not self.signal:
            self.signal, self._first = number, time.monotonic()


def flags_of(number: int) -> tuple[bool, bool]:
    """A signal, or 0, as flags that can be summed over ranks."""
    return number == signal.SIGINT, number == signal.SIGTERM


def signal_of(counts: Sequence[float]) -> int:
    """The signal of summed flags, or 0; SIGINT where both were received."""
    interrupted, terminated = (count > 0 for count in counts)
    return int(signal.SIGINT if interrupted else signal.SIGTERM if terminated else 0)
