"""Errors that a user can fix, reported in one line."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

log = logging.getLogger(__name__)
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")


class UserError(ValueError):
    """Input that cannot be used; the text names the value, the rule and the remedy.

    The command line prints it as one line and leaves with exit code 2.
    """


class RunError(RuntimeError):
    """A run that cannot go on (disk, lock, non-finite losses); exit code 1, nothing saved is lost."""


class PeerError(RunError):
    """Another rank failed and has reported why; this one exits with code 1 and prints nothing."""


@contextlib.contextmanager
def by_product(what: str) -> Iterator[None]:
    """Context for what a job makes beside its result, e.g. a preview: any error in it is one warning, no more.

    Args:
        what: is made, e.g. "the sample grid of step 200".
    """
    try:
        yield
    except Exception as error:
        log.warning("%s failed (%s: %s); all else goes on", what, type(error).__name__, one_line(error))
        log.debug("where it failed", exc_info=True)


def one_line(error: BaseException, limit: int = 200) -> str:
    """The text of an error of another library as one line of at most ``limit`` characters, without control codes."""
    text = " ".join(_CONTROL.sub(" ", str(error)).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, or one of torch's for the CPU, CUDA or MPS."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


def require_type(name: str, value: object, kinds: type | tuple[type, ...], remedy: str) -> None:
    """Refuses an argument of another type where Python's own error would come late and name another one.

    Args:
        name: of the argument.
        value: what was given.
        kinds: the types it may have.
        remedy: what to give.

    Raises:
        UserError: ``value`` has none of these types.
    """
    if not isinstance(value, kinds):
        given = repr(value)
        raise UserError(f"{name} is {given if len(given) <= 60 else f'a {type(value).__name__}'}; {remedy}")


def require_list(name: str, value: object) -> None:
    """Refuses one word or number where several are expected: a word would be taken letter by letter.

    Raises:
        UserError: as ``as_list``.
    """
    as_list(name, value)


def as_list(name: str, value: object) -> list[Any]:
    """Several values as a list.

    Args:
        name: of the argument.
        value: any iterable but a text or a mapping.

    Raises:
        UserError: ``value`` is one word, one number (a scalar tensor, too), or nothing that can be listed.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        with contextlib.suppress(TypeError):  # a scalar tensor says that it can be iterated over
            return list(value)
    raise UserError(f"{name} is {value!r}; give a list, e.g. [{value!r}]")


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
