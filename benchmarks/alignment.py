"""Trains U-DiT-tiny on the digits with and without alignment to EfficientNet-Lite0, at equal steps and seeds.

python benchmarks/alignment.py            trains and scores what alignment.json lacks; resumes when interrupted
python benchmarks/alignment.py --table    prints the table of docs/training.md from alignment.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import udit
from udit import dist
from udit.data.cache_config import MANIFEST
from udit.evaluation.teachers import load_teacher
from udit.run.recipes import load_run
from udit.training.encoding import encode
from udit.training.trainer import Trainer

RECORD = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
STEPS = 200
ALIGN = "training.align.hidden=256"
CASES = {
    "without": [],
    "REPA": [ALIGN],
    "U-REPA": [ALIGN, "training.align.manifold=3"],
}
"""Overrides of the digits' recipe, by case; the teacher's features are in the same latent cache for all."""
ORDER = [*((case, seed) for seed in SEEDS for case in ("without", "U-REPA")), *(("REPA", seed) for seed in SEEDS)]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--runs", type=Path, default=Path("runs/alignment"), help="where cache and run folders are")
    asked = parser.parse_args()
    if asked.table:
        print(table(read()))
        return
    cache = asked.runs / "cache"
    if not (cache / MANIFEST).is_file():
        run = load_run("digits")
        encode(run, cache, teacher=load_teacher("efficientnet-lite0", run), shard_size=256)
    for case, seed in ORDER:
        words = CASES[case]
        if f"{case}, seed {seed}" not in read():
            out = asked.runs / f"{case}-{seed}"
            measured = measure([*words, f"seed={seed}", f"latents={cache}", f"out={out}"], out)
            RECORD.write_text(
                json.dumps(read() | {f"{case}, seed {seed}": measured}, indent=1) + "\n", encoding="utf-8"
            )
            print(case, seed, measured, flush=True)


def read() -> dict[str, Any]:
    """The measurements so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def measure(words: list[str], out: Path) -> dict[str, Any]:
    """Trains and scores one run; resumes if it was interrupted."""
    run = load_run("digits", ["model=U-DiT-tiny", f"training.steps={STEPS}", "training.save_every=50", *words])
    began, seconds, steps = time.process_time(), 0.0, 0
    for _ in Trainer(run, dist.World()).steps():
        steps += 1
    seconds = time.process_time() - began
    loaded = sorted(name for name in sys.modules if name.startswith("efficientnet"))
    report = udit.evaluate(out, progress=False)
    assert report is not None
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {
        "distance": report.distance,
        "distance_interval": report.distance_interval,
        "distance_real": report.distance_real,
        "agreement": report.agreement,
        "num_samples": report.num_samples,
        "val_loss": last["val_loss"],
        "align": last.get("align"),
        "processor_seconds_per_step": seconds / max(1, steps),
        "teacher_modules_loaded": len(loaded),
        "steps": STEPS,
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": str(date.today()),
    }


def table(record: dict[str, Any]) -> str:
    """The table, a row for each case: the mean over seeds, and each seed with its interval."""
    lines = [
        f"| alignment | Fréchet distance, mean of {len(SEEDS)} seeds | by seed (95 %) | class agreement | ms a step |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for case in CASES:
        rows = [record[f"{case}, seed {seed}"] for seed in SEEDS if f"{case}, seed {seed}" in record]
        each = ", ".join("{:.2f} ({:.2f} to {:.2f})".format(r["distance"], *r["distance_interval"]) for r in rows)
        lines.append(
            f"| {case} | {fmean(r['distance'] for r in rows):.2f} | {each} | "
            f"{fmean(r['agreement'] for r in rows):.1%} | "
            f"{1000 * fmean(r['processor_seconds_per_step'] for r in rows):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
