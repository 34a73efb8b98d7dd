"""Prints the measurements in docs/performance/*.json, which ``make performance`` writes, as tables.

python benchmarks/report.py [NAME ...]   prints every table of these files, e.g. forward-S; of all if none is given
python benchmarks/report.py --page       writes docs/performance.md: targets, results, how to measure
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frontier_page import whole_images
from targets import baselines, targets

from udit.benchmarking.report import markdown

ROOT = Path(__file__).parent.parent / "docs"
COUNTS = ("first-gpu", "gpu-count", "kernels", "residual")
"""Files there of a GPU's path, which are no measurements of time; docs/gpu.md and docs/kernels.md show them."""
PAGE = """# Performance

How fast the networks run on a CPU core, what was aimed at, and how to measure it. No GPU has been measured.
Every number comes from a file in `docs/performance/`, which names its command, machine, versions and date;
this page is written from them by `python benchmarks/report.py --page`.

## Target and result

Each network's speed is compared with that of another network measured in the same run: the **literal** U-DiT
(`benchmarks/literal.py`) is the paper's network as its release computes it (channels first,
complex RoPE, attention matrices written out, FFN branches separate in training); **DiT-XL/2** and the DiTs of **equal
MACs** are this library's own ("ours") or diffusers'. "Missed" and "in part" are misses.

{targets}

## Networks of equal MACs

Time of U-DiT-S over that of a network of about the same MACs; below 1, U-DiT-S is faster.
MACs differ: in the brackets, those of the other network over U-DiT-S's in the same work.

{baselines}

Time, and memory beyond the weights, grow as the number of pixels to this power:

{growth}

## Whole images

{images}

## How to measure

<!-- not executed: timings want an idle machine -->
```console
$ make performance                            # measures all of the above (hours, idle machine), writes this page
$ python benchmarks/report.py forward-S       # prints all tables of a file; of all files if none is named
$ udit bench U-DiT-S --work train --batch 4   # any network, batch, size or baseline; see `udit bench --help`
$ make bench-smoke                            # counts operators, copies and bytes against benchmarks/budget.json
```

A run interleaves its networks, so that a drifting clock speed affects all of them equally, and reports for each:

- **median ms** and **spread**: of the rounds, and (largest - smallest) / median.
- **speed**: a ratio within the run, against the first row of its table.
- **of peak**: arithmetic per second as a share of what a large matrix product reaches in the same rounds. A training
  step counts as three forwards.
- **peak MB**: weights, optimiser state, plus the most that was allocated in addition at one time.
- **first call s**: of a compiled network with an empty kernel cache, so all of compiling is in it. Blocks are
  compiled, not the network around them; a graph break would be a place in a block that falls back to Python.
- **waited for data**: the share of consecutive training steps that passed before their images were there, read as
  `udit train` reads them: {waited} of a step on Fashion-MNIST with {workers} reading processes.
- Where the time goes, by kind of operator and by part of the network.

**Conditions of the present files.** AMD EPYC, one thread on one of two cores of a virtual machine, at real-time
priority, with the other core idle. Exceptions: forward-S, both forward-*-against-DiT-XL, equal-MACs-128x128,
growth-training and training-fed-by-fashion-mnist ran while the other core was busy, which shares caches and memory;
compiling-B could use both cores. The load of the host's other virtual machines is unknown: the matrix product's speed
drifts between 65 and 95 GFLOP/s, and one forward at batch 1 by a third. At 16x16 and 32x32 a run of seven rounds was
stopped before its last training steps; those are from a run of three rounds (equal-MACs-*-training-batch-*).

**When a run is void.** If the machine was busy, spreads are large and the literal U-DiT falls below what it reaches
alone: 41 % of peak forward, in training 31 % at width 96 and 15 % at width 32. Ratios of such a run mean nothing.
"""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a file in docs/performance, or its path")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md")
    asked = parser.parse_args()
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "performance").glob("*.json"))
        if path.stem not in COUNTS
    }
    if asked.page:
        (ROOT / "performance.md").write_text(page(found), encoding="utf-8")
        return
    names = [Path(name).stem for name in asked.names] or list(found)
    if unknown := [name for name in names if name not in found]:
        parser.error(f"no file {unknown[0]!r} in docs/performance; there are {', '.join(found)}")
    print("\n".join(line for name in names for line in tables(name, found[name])))


def page(found: dict[str, Any]) -> str:
    """docs/performance.md."""
    drawn = json.loads((Path(__file__).parent / "frontier.json").read_text(encoding="utf-8"))
    fed = found.get("training-fed-by-fashion-mnist", {"results": []})["results"]
    return PAGE.format(
        targets="\n".join(targets(found)),
        baselines="\n".join(baselines(found)),
        growth="\n".join(grown(found)),
        images="\n".join(whole_images(drawn)),
        waited=" and ".join(f"{row['waited']:.2%}" for row in fed),
        workers=" and ".join(row["work"].rsplit(", ", 1)[1].split()[0] for row in fed),
    )


def tables(name: str, content: dict[str, Any]) -> Iterator[str]:
    """All tables of one file."""
    yield from (f"## {name}\n", f"`{content['command']}`\n")
    if rows := growth(content):
        yield "| time and memory grow as pixels to the power of | time | memory |"
        yield "| --- | ---: | ---: |"
        yield from (f"| {who} | {time:.2f} | {memory:.2f} |" for who, time, memory in rows)
        yield ""
    yield markdown(content)


def grown(found: dict[str, Any]) -> Iterator[str]:
    """A table of the growth exponents of all files that have them."""
    yield "| network | work | sides | time | memory |"
    yield "| --- | --- | --- | ---: | ---: |"
    for content in found.values():
        first = content["results"][0]["work"].split(", ")[0]
        sides = sorted({_side(row) for row in content["results"]})
        for who, time, memory in growth(content):
            yield f"| {who} | {first} | {', '.join(map(str, sides))} | {time:.2f} | {memory:.2f} |"


def growth(content: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Exponents of time and memory in the number of pixels, by subject, where there are three sizes or more.

    Each size must have four times the pixels of the one before. The exponent of time is a least-squares slope of
    logarithms. Memory includes the weights, which do not grow, so its exponent is that of the differences between the
    three largest sizes.
    """
    series: dict[str, dict[int, dict[str, Any]]] = {}
    for row in content["results"]:
        series.setdefault(row["subject"], {})[_side(row)] = row
    if not all(len(rows) >= 3 for rows in series.values()):
        return []
    exponents = []
    for who, rows in series.items():
        sides = sorted(rows)
        slope = statistics.linear_regression(
            [2 * math.log(side) for side in sides], [math.log(rows[side]["median"]) for side in sides]
        ).slope
        low, middle, high = (rows[side]["peak_bytes"] for side in sides[-3:])
        exponents.append((who, slope, math.log((high - middle) / (middle - low), 4)))
    return exponents


def _side(row: dict[str, Any]) -> int:
    return int(row["work"].split(", ")[1].split("x")[0])


if __name__ == "__main__":
    main()
