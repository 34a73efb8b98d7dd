"""Provokes the messages of the command line and prints them for reading: ``python tests/messages.py`` (minutes).

The last lines list the places that raise an error and were not reached. ``test_messages.py`` asks the same of a part.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError
from pydantic_core._pydantic_core import list_all_errors

import udit
from udit.cli import app, main
from udit.errors import RunError, UserError
from udit.run.keys import known_keys
from udit.run.recipes import list_recipes, load_run

SOURCE = Path(udit.__file__).parent
VALUES = ("", "x", "-1", "1.5", ".nan", "true", "[x]", "[]", "[1, 2, 3, 4, 5, 6, 7]", "{a: 1}", "99999999999999999999")
"""Of which each is wrong for most keys: empty, a word, out of range, no whole number, a list, a section and so on."""
COMPLETE = (["models"], ["doctor"])
"""Commands that do their work, for a minute, without any arguments."""
TEMPLATES = [re.split(r"[{]", str(row["message_template_python"]))[0].strip() for row in list_all_errors()]
BANNED = re.compile(
    r"pydantic|<class|Traceback|NoneType|got an unexpected|[\x00-\x08\x0b-\x1f\x7f]"
    r"|\(-?\d+,[ )]|(?<!\w)\(\)|specified multiple"  # a list is written [1, 2], not (1, 2)
    r"|(?-i:\bNone\b)|\b(Posix)?Path\(|\w+Config\b|\w+Data\b\(|\bTensor\b|torch\.(b?float|u?int|bool|Size|device|Tensor)"
    r"|" + "|".join(re.escape(text) for text in TEMPLATES if len(text) > 12),
    re.IGNORECASE,
)
"""What no message contains: words of a library's or of Python's own, control codes, and names of classes."""


def banned(message: str) -> str | None:
    """What a message contains that none should, or None."""
    found = BANNED.search(message)
    return found[0] if found else None


def keys_of(values: Any, above: str = "") -> Iterator[str]:
    """Dotted keys of nested dicts, sections included."""
    for key, value in values.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from keys_of(value, f"{above}{key}.")


def key_words(values: Iterable[str] = VALUES, keys: Iterable[str] = ()) -> Iterator[str]:
    """Every key of every section with each value, every key misspelt, and words that are no override."""
    for key in dict.fromkeys([*known_keys(), *keys]):
        yield from (f"{key}={value}" for value in values)
        yield f"{key}x=1"
        yield f"{key}.below=1"
    yield from ("x", "=", "=1", ".=1", "lr=1", "a.b.c=1", "training.learning_rate=1", "training.lr=[1", "data..kind=x")


def words_of(recipe: str) -> Iterator[str]:
    """All of ``key_words``, with the keys of sections in sections that a recipe has."""
    return key_words(VALUES, keys_of(load_run(recipe, absent=True).plain()))


def of_recipe(recipe: str, words: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(command, message) of a recipe with each word that is refused."""
    for word in words:
        with contextlib.suppress(RunError):
            try:
                load_run(recipe, [word], absent=True)
            except UserError as error:
                yield f"udit train {recipe} '{word}'", str(error)
            except Exception as error:  # noqa: BLE001 - no error of ours: the command line would show a traceback
                yield f"udit train {recipe} '{word}'", f"Traceback: {type(error).__name__}: {error}"


def commands() -> Iterator[list[str]]:
    """Every command without arguments, with too many, and with every option left empty, wrong and misspelt."""
    yield from ([], ["--lr"], ["trian"], ["--versio"])
    for chain, command in _leaves(app, []):
        arguments = list(command.assemble_argument_collection())
        needed = [argument for argument in arguments if argument.required]
        given = [word for argument in needed for word in _words(argument)]
        if chain not in COMPLETE:
            yield [*chain]
        yield [*chain, *given, *["more"] * 9]
        if given:
            yield [*chain, *given]
        for argument in arguments:
            for flag in [name for name in argument.names if name.startswith("--")]:
                nowhere = given or ["nowhere"]
                yield from ([*chain, *nowhere, f"{flag}x=1"], [*chain, *nowhere, flag.replace("-", "") or flag])
                if argument.hint is bool:
                    yield [*chain, *nowhere, f"{flag}=x"]
                else:
                    yield from (
                        [*chain, *nowhere, flag],
                        [*chain, *nowhere, flag, "x"],
                        [*chain, *nowhere, f"{flag}=-1"],
                    )


def ends_at_once(words: list[str]) -> bool:
    """Whether a command line is refused before its command begins."""
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except CycloptsError:
        return True
    return False


def of_commands(lines: Iterable[list[str]]) -> Iterator[tuple[str, str]]:
    """(command, message) of each command line that is refused."""
    for words in lines:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            try:
                main(words)
            except SystemExit:
                pass
            except BaseException as error:  # noqa: BLE001 - whatever the command line does not answer itself
                errors.write(f"udit: error: Traceback: {type(error).__name__}: {error}\n")
        for line in errors.getvalue().splitlines():
            if line.startswith("udit: error: "):
                yield f"udit {' '.join(words)}", line.removeprefix("udit: error: ")


def raise_sites(kinds: Collection[str] = ("UserError", "RunError")) -> dict[tuple[str, int], str]:
    """(file, line) of every ``raise UserError(...)`` and so on -> its text in the source."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            made = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(made, ast.Call) and ast.unparse(made.func) in kinds:
                text = " ".join(ast.unparse(made).split())
                found |= {(str(path), line): text for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    return found


@contextlib.contextmanager
def reached() -> Iterator[set[tuple[str, int]]]:
    """Places at which errors were made meanwhile."""
    places: set[tuple[str, int]] = set()

    def note(self: Exception, *arguments: Any) -> None:
        frame = sys._getframe(1)
        places.add((frame.f_code.co_filename, frame.f_lineno))
        Exception.__init__(self, *arguments)

    kinds = (UserError, RunError)
    try:
        for kind in kinds:
            kind.__init__ = note  # type: ignore[method-assign]
        yield places
    finally:
        for kind in kinds:
            del kind.__init__


def _leaves(command: Any, chain: list[str]) -> Iterator[tuple[list[str], Any]]:
    names = [name for name in command if not name.startswith("-")]
    for name in names:
        yield from _leaves(command[name], [*chain, name])
    if not names:
        yield chain, command


def _words(argument: Any) -> list[str]:
    flags = [name for name in argument.names if name.startswith("--")]
    value = "0.1" if argument.hint is float else "nowhere"
    return [flags[0], value] if flags else [value]


def _print() -> None:
    sites = raise_sites()
    with reached() as places, tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        told = [pair for recipe in list_recipes() for pair in of_recipe(recipe, words_of(recipe))]
        told += of_commands(commands())
    for command, message in told:
        wrong = banned(message)
        sys.stdout.write(f"{command}\n    {message}\n" + (f"    BANNED: {wrong!r}\n" if wrong else ""))
    unreached = {text: f"{Path(file).relative_to(SOURCE)}:{line}" for (file, line), text in sites.items()}
    for place in places & sites.keys():
        unreached.pop(sites[place], None)
    for text, place in unreached.items():
        sys.stdout.write(f"not reached: {place}: {text}\n")


if __name__ == "__main__":
    _print()
