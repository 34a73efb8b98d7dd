"""Writes docs/performance.md from docs/performance/*.json, which ``make performance`` makes, and from frontier.json."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from frontier_page import whole_images
from targets import targets

from udit.benchmarking.report import markdown

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
The present files were measured on one of two cores of a virtual machine, at real-time priority, with the other core
idle, except forward S, those against DiT-XL/2 forward, 128x128, growth in training and fed by Fashion-MNIST: then it
had other work, which shares caches and memory. Compiling B could use both. The neighbours on the host are not known:
the matrix product's speed drifts between 65 and 95 GFLOP/s, and one forward of batch 1 by a third. At 16x16 and 32x32
a run of seven rounds was ended before its last training steps, which are of a run of three. `make performance` measures
anew.
"""


def main() -> None:
    """Reads all, writes one page."""
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "performance").glob("*.json"))
    }
    drawn = json.loads((Path(__file__).parent / "frontier.json").read_text(encoding="utf-8"))
    lines = [INTRO, "## Asked and measured\n", *targets(found), "", "## Whole images\n", *whole_images(drawn), ""]
    for name, content in found.items():
        lines += [f"## {name.replace('-', ' ')}\n", f"`{content['command']}`\n", *growth(content), markdown(content)]
    (ROOT / "performance.md").write_text("\n".join(lines), encoding="utf-8")


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
