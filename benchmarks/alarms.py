"""Alarms over whole runs of the shipped recipes: what their logs say, and what today's rules make of their numbers.

    PYTHONPATH=src python benchmarks/alarms.py RUN [RUN ...]     # alarms.json, and its table in docs/training.md
    PYTHONPATH=src python benchmarks/alarms.py --page            # the table alone

RUN is a folder of ``udit train``, complete. Losses, gradient norms, validation losses and waits are judged again from
``metrics.jsonl``; averages and samples are not in it, and what was logged of them counts. Ends with exit code 1 if
there is any alarm. Seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from udit.run.config import Run
from udit.store import read_run_config
from udit.training.alarms import SETTLED, WAITING_STEPS, WINDOW, Alarms
from udit.training.records import CLOCK, StepRecord
from udit.training.watch import Watch

ROOT = Path(__file__).parent.parent
RECORD, PAGE = Path(__file__).with_suffix(".json"), ROOT / "docs" / "training.md"
MARK = "<!-- counted, by benchmarks/alarms.py -->"
"""Before and behind the table that this script writes into the page."""


def records(folder: Path) -> Iterator[tuple[StepRecord, list[str]]]:
    """The steps of a run, and the alarms that were logged at each."""
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        logged = [*values.pop("alarms", {}), *(kind for kind in CLOCK if isinstance(values.get(kind), str))]
        logged += ["exploded or stalled"] if values.get("warning") else []
        skipped = tuple(values.get("skipped_samples", ()))
        yield (
            StepRecord(
                step=values["step"],
                lr=values["lr"],
                loss=values.get("loss", math.nan),
                mse=values.get("mse", math.nan),
                vb=None,
                grad_norm=values.get("grad_norm", math.nan),
                images_per_second=values["images_per_second"],
                waited=values["waited"],
                skipped_samples=skipped,
                val_loss=values.get("val_loss"),
            ),
            logged,
        )


def above(values: list[float]) -> float:
    """The highest value over the median of those just before it, once there are enough."""
    return max(
        values[i] / statistics.median(values[max(0, i - WINDOW) : i])
        for i in range(SETTLED, len(values))
        if min(values[max(0, i - WINDOW) : i]) > 0
    )


def replay(folder: Path) -> dict[str, Any]:
    """One run's alarms, logged and by today's rules, and how near it came to them."""
    alarms, watch = Alarms(), Watch()
    found: set[str] = set()
    steps = [step for step, logged in records(folder) if not found.update(logged)]
    for step in steps:
        bounds = alarms.bounds(step.step)
        spike = step.loss > bounds.loss or step.grad_norm > bounds.grad_norm
        found |= {alarm.kind for alarm in alarms.step(step, [] if spike else None)}
        found |= {alarm.kind for alarm in alarms.overfitting(step.step, step.val_loss)}
        found |= {"exploded or stalled"} if watch.see(step) else set()
    waits = [step.waited for step in steps]
    windows = [statistics.fmean(waits[i : i + WAITING_STEPS]) for i in range(max(1, len(waits) - WAITING_STEPS))]
    sound = [step for step in steps if not step.skipped]
    return {
        "steps": len(steps),
        "loss_over_median": above([step.loss for step in sound]),
        "norm_over_median": above([step.grad_norm for step in sound]),
        "most_waited": max(windows),
        "alarms": sorted(found),
    }


def title(run: Run) -> str:
    """What a run trains: data, process, family."""
    words = [run.data.kind, run.diffusion.kind, run.model.family]
    return ", ".join([*words, *(["adapter"] if run.training.adapter else [])])


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    lines = [
        "| run | steps | highest loss over the median before | highest norm | most waited, of 100 steps | alarms |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in record.items():
        lines.append(
            f"| {name} | {row['steps']:,} | {row['loss_over_median']:.1f} | {row['norm_over_median']:.1f} "
            f"| {row['most_waited']:.1%} | {', '.join(row['alarms']) or 'none'} |"
        )
    return "\n".join(lines)


def page(record: dict[str, Any], text: str) -> str:
    """The page, with the record in it."""
    before, _, behind = text.split(MARK)
    return f"{before}{MARK}\n\n{table(record)}\n\n{MARK}{behind}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--page", action="store_true", help="the table alone, from the record")
    asked = parser.parse_args()
    if not asked.page:
        found = {title(read_run_config(folder)): replay(folder) for folder in asked.folders}
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(page(record, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(any(row["alarms"] for row in record.values()))


if __name__ == "__main__":
    main()
