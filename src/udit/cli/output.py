"""Standard output of commands: lines and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def say(text: object = "") -> None:
    """Prints one line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[object]], markdown: bool = False) -> str:
    """Rows in aligned columns, numbers to the right; or as a Markdown table."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [all(row[i][:1].isdigit() or row[i] == "-" for row in cells) for i in range(len(header))]
    if markdown:
        rule = ["---:" if numbers else "---" for numbers in right]
        return "\n".join("| " + " | ".join(row) + " |" for row in [list(header), rule, *cells])
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    lines = []
    for row in [list(header), *cells]:
        parts = [c.rjust(w) if numbers else c.ljust(w) for c, w, numbers in zip(row, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)
