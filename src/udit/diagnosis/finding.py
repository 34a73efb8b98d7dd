"""What a check found, and a limit on the time of checks that may hang."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Verdict = Literal["ok", "note", "slow", "wrong"]
"""As it should be; worth knowing; works and takes longer than it needs to; does not work, or gives wrong results."""
PATIENCE = 2.0
"""Seconds that another program or machine has to answer."""


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis."""

    verdict: Verdict
    subject: str
    """What was looked at, e.g. "compiler"."""
    text: str
    """What was found."""
    remedy: str = ""
    """What to do about it; empty where nothing needs doing."""

    def __str__(self) -> str:
        """As one line: what was found, then what to do."""
        return f"{self.subject}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def within(seconds: float, action: Callable[[], T]) -> T | None:
    """The result of an action that may hang; None if it takes longer than ``seconds``.

    It runs in a daemon thread, which is left behind if it hangs: the action holds no lock, writes nothing, and handles
    its own errors.
    """
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
