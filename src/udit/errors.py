"""Errors that a user can fix, reported in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot be used; the text names the value, the rule and the remedy.

    The command line prints it as one line and leaves with exit code 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on (disk, lock, non-finite losses); exit code 1, nothing saved is lost."""


class PeerError(RunError):
    """Another rank failed and has reported why; this one exits with code 1 and prints nothing."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error on an unknown word: the nearest known one, or all of them.

    Args:
        word: what the user wrote.
        known: what would have been understood.

    Returns:
        ``"; did you mean 'digits'?"`` or ``" (known: a, b, c)"``.
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if not close:
        folded = {name.lower(): name for name in names}
        close = [folded[m] for m in difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)]
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(sorted(names))})"
