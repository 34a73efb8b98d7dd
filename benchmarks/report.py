"""Writes docs/performance.md from docs/performance/*.json, which ``make performance`` makes, and from frontier.json."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from frontier_page import whole_images

from udit.bench.report import comparisons, markdown

ROOT = Path(__file__).parent.parent / "docs"
INTRO = """# Performance

Written by `python benchmarks/report.py` from the files in [performance/](performance); each names its command, machine,
threads, versions and date. Speed is a ratio within one run of interleaved rounds, against the first row of its table.
The literal U-DiT ([benchmarks/literal.py](../benchmarks/literal.py)) is the paper's network written plainly, as its
release computes it: channels first, complex RoPE, attention matrices written out, the FFN unfolded in training.
"Of peak" is arithmetic a second as a share of a matrix product's, measured in the same rounds; a training step counts
as three forwards. "Peak MB" is weights, the optimiser's state and the most that lived at once beside them.
"First call s" of a compiled network is with an empty cache of kernels, so it holds all of compiling (blocks are
compiled, not the network around them); a graph break would be a place in a block that runs in Python. "Waited for data"
is the share of the time of consecutive training steps that passed before their pictures were there; they are read as by
`udit train`.

A run made while the machine had other work shows it in its spread and in a literal U-DiT that stays below what it
reaches alone, 41 % of peak forward, 31 % in training at width 96 and 15 % at width 32; below that its ratios are void.
The present files were measured on one of two cores, at real-time priority: training 2M, training S, training L and
those of equal MACs up to 64x64 while the other core was idle, the others while it was busy, which shares caches and
memory. `make performance` measures anew.
"""


def main() -> None:
    """Reads all, writes one page."""
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "performance").glob("*.json"))
    }
    drawn = json.loads((Path(__file__).parent / "frontier.json").read_text(encoding="utf-8"))
    lines = [INTRO, "## In short\n", *summary(found), "", "## Whole images\n", *whole_images(drawn), ""]
    for name, content in found.items():
        lines += [f"## {name.replace('-', ' ')}\n", f"`{content['command']}`\n", *growth(content), markdown(content)]
    (ROOT / "performance.md").write_text("\n".join(lines), encoding="utf-8")


def summary(found: dict[str, Any]) -> list[str]:
    """How much faster each row of a file is than the first, over all its forwards, training steps or images."""
    lines = []
    for name, content in found.items():
        ratios: dict[str, dict[str, list[float]]] = {}
        for rows in comparisons(content):
            for row in rows[1:]:
                of = ratios.setdefault(row["work"].split(",")[0], {}).setdefault(row["subject"], [])
                of.append(rows[0]["median"] / row["median"])
        first = content["results"][0]["subject"]
        threads = content["machine"]["threads"]
        where = f"- **{name.replace('-', ' ')}** ({threads} thread{'s' * (threads > 1)})"
        for work, subjects in ratios.items():
            told = [f"{who} {math.prod(r) ** (1 / len(r)):.2f}x" for who, r in subjects.items()]
            lines += [f"{where}, {work}, geometric mean speed against {first}: {', '.join(told)}."]
        lines += [f"{where}: {line}." for row in content["results"] for line in told_of(row)]
    return lines


def told_of(row: dict[str, Any]) -> list[str]:
    """What one row says by itself."""
    if row.get("waited") is not None:
        return [f"{row['subject']}, {row['work']}: waited for data {row['waited']:.2%} of the time"]
    if row.get("graph_breaks") is not None:
        found = f"{row['graphs']} graphs, {row['graph_breaks']} graph breaks"
        return [f"{row['subject']}, {row['work']}: first call {row['first_call']:.0f} s, {found}"]
    return []


def growth(content: dict[str, Any]) -> list[str]:
    """Exponents of time and memory in pixels, where the rows are of three sizes or more, each four times the last.

    Time's is a least-squares slope of logarithms. Memory holds the weights, which do not grow: its exponent is that of
    the differences between the three largest sizes.
    """
    series: dict[str, dict[int, dict[str, Any]]] = {}
    for row in content["results"]:
        side = int(row["work"].split(", ")[1].split("x")[0])
        series.setdefault(row["subject"], {})[side] = row
    if not all(len(rows) >= 3 for rows in series.values()):
        return []
    lines = ["| time and memory grow as pixels to the power of | time | memory |", "| --- | ---: | ---: |"]
    for who, rows in series.items():
        sides = sorted(rows)
        slope = statistics.linear_regression(
            [2 * math.log(side) for side in sides], [math.log(rows[side]["median"]) for side in sides]
        ).slope
        low, middle, high = (rows[side]["peak_bytes"] for side in sides[-3:])
        lines.append(f"| {who} | {slope:.2f} | {math.log((high - middle) / (middle - low), 4):.2f} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
