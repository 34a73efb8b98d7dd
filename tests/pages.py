"""What the documentation shows to type: the blocks of its pages, and how a test runs them.

A block of ``python`` or ``console`` is run as it stands. A comment in the line above it may say otherwise:

    <!-- not executed: the reason -->
    <!-- executed with: train training.steps=2; sample --steps 2 -->

The second appends words to the commands of those names, in place of the same option, so that they take seconds.
Lines of a console block that do not
begin with ``$`` are what the command prints, in this order; ``...`` stands for anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<kind>python|console)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
UNMARKED = re.compile(r"^    (?:\$ )?(?:udit|pip|make|torchrun|accelerate|import udit|udit\.\w+\() ?.*$", re.MULTILINE)
"""A command in an indented block, which carries no mark."""


@dataclass(frozen=True)
class Command:
    """A line to type, and lines of what it prints."""

    words: tuple[str, ...]
    printed: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A block of a page: its kind, its text and what the comment above it says."""

    kind: str
    code: str
    mark: str

    @property
    def reason(self) -> str | None:
        """Why the block is not run; None if it is run."""
        head, _, reason = self.mark.partition("not executed: ")
        return reason.strip() if not head and reason else None

    @property
    def added(self) -> dict[str, list[str]]:
        """{command: words that a test appends to it}."""
        _, _, clauses = self.mark.partition("executed with: ")
        split = [shlex.split(clause) for clause in clauses.split(";")] if clauses and self.reason is None else []
        return {first: rest for first, *rest in split}

    def commands(self) -> Iterator[Command]:
        """The commands of a console block, with the words that are appended."""
        lines = self.code.replace("\\\n", " ").splitlines()
        starts = [place for place, line in enumerate(lines) if line.startswith("$ ")]
        assert starts[:1] == [0], f"a console block begins with a command: {self.code!r}"
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            words = shlex.split(lines[start][2:], comments=True)
            printed = tuple(line for line in lines[start + 1 : end] if line.strip())
            yield Command(tuple(replaced(words, self.added.get(words[1], []))), printed)


def replaced(words: list[str], added: list[str]) -> list[str]:
    """Words with further ones behind them, in place of those of the same option."""
    for option in (word for word in added if word.startswith("--") and word in words):
        place = words.index(option)
        words = words[:place] + words[place + 2 :]
    return [*words, *added]


def pages() -> list[Path]:
    """README.md and every page below docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [Block(match["kind"], match["code"], match["mark"] or "") for match in BLOCK.finditer(text)]


def missing(printed: tuple[str, ...], output: str) -> str | None:
    """The first of the lines that a page shows which the output does not have, in this order."""
    rest = output.splitlines()
    for line in printed:
        pattern = re.compile(".*".join(map(re.escape, line.strip().split("..."))))
        places = [place for place, found in enumerate(rest) if pattern.fullmatch(found.strip())]
        if not places:
            return line
        rest = rest[places[0] + 1 :]
    return None
