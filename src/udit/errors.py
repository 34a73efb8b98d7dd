"""Errors that a user can fix, reported in one line."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f]")

A_SLIP, CLOSE = 0.8, 0.65
"""Share of matching letters (``difflib``) from which a word is a misspelt one, and from which it may be meant."""

SHOWN = 30
"""Most known words that an error lists."""


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
        if (missing := of_missing_module(error, what)) is not None:
            log.warning("%s; all else goes on", missing)
            return
        log.warning("%s failed (%s: %s); all else goes on", what, type(error).__name__, one_line(error))
        log.debug("where it failed", exc_info=True)


def one_line(error: BaseException, limit: int = 200) -> str:
    """The text of an error of another library as one line of at most ``limit`` characters, without control codes."""
    text = " ".join(_CONTROL.sub(" ", str(error)).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def missing_extra(what: str, package: str | None, extra: str) -> UserError:
    """The error where an optional package is not installed.

    Args:
        what: needs it, e.g. a command or a key with its value.
        package: that cannot be imported.
        extra: of udit's, which brings it.
    """
    return UserError(f"{what} needs {package or 'a package'}, which is not installed; run: {install_command(extra)}")


MODULES = {"matplotlib": "train", "sklearn": "train", "tensorboard": "train"}
"""Modules of optional packages that whole files import, and the extra that brings each."""


def of_missing_module(error: BaseException, what: str) -> UserError | None:
    """The error where one of ``MODULES`` is not installed; None for any other error.

    Args:
        error: of an import.
        what: as of ``missing_extra``.
    """
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return missing_extra(what, name, MODULES[name]) if name in MODULES else None


def install_command(extra: str) -> str:
    """How an extra is installed."""
    return f"pip install 'udit[{extra}]'"


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
    """The tail of an error on an unknown word: the known ones that may be meant, or all of them.

    Args:
        word: what the user wrote.
        known: what would have been understood.

    Returns:
        ``"; did you mean 'digits'?"`` or ``" (known: a, b, c)"``.
    """
    names = list(known)
    if close := resembling(word, names):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f" (known: {', '.join(sorted(names)[:SHOWN])}{more})"


def resembling(word: str, names: Sequence[str], least: float = CLOSE) -> list[str]:
    """The names that a word may stand for: the same but for a slip, its initials, or one that shares a part with it.

    Args:
        word: what the user wrote.
        names: the known ones.
        least: share of matching letters from which a name is offered.

    Returns:
        One name, or several of which the word is a part, e.g. ``ema_decay`` and ``weight_decay`` of ``decay``; at most
        three.
    """
    if close := _close(word, names, A_SLIP):
        return close
    parts = _parts(word)
    for name in names:
        if (len(parts) > 1 and _initials(parts) == name.casefold()) or _initials(_parts(name)) == word.casefold():
            return [name]
    sharing = [name for name in names if parts and set(parts) <= set(_parts(name))]
    return sharing if 0 < len(sharing) <= 3 else _close(word, names, least)


def _close(word: str, names: Sequence[str], least: float) -> list[str]:
    """The nearest name in its own letters, or else in small ones; swapped letters of a short name are a slip, too."""
    for plain in (str, str.casefold):
        folded = {plain(name): name for name in reversed(names)}
        swapped = [name for name in folded if len(name) < 4 and sorted(name) == sorted(plain(word))]
        if close := difflib.get_close_matches(plain(word), folded, n=1, cutoff=least) or swapped:
            return [folded[close[0]]]
    return []


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[\W_]+", name.casefold()) if part]


def _initials(parts: Sequence[str]) -> str:
    return "".join(part[0] for part in parts)
