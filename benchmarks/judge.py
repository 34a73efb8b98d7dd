"""How good the judges of the shipped data sets are, and what their training costs.

OMP_NUM_THREADS=1 python benchmarks/judge.py [RECIPE ...]    trains the judges of recipes; writes judge.json
python benchmarks/judge.py --table                           prints the table of docs/evaluation.md from judge.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import processor

import udit
from udit.data.sources import parts_of
from udit.evaluation import frechet
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import train_judge
from udit.evaluation.judge_network import NAME
from udit.evaluation.judges import SEED, steps_for
from udit.evaluation.metrics import share_interval
from udit.run.recipes import load_run

RECORD = Path(__file__).with_suffix(".json")
RECIPES = ("digits", "fashion-mnist")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"{', '.join(RECIPES)} if none is given")
    parser.add_argument("--table", action="store_true", help="print the table")
    asked = parser.parse_args()
    if asked.table:
        print(table(read()))
        return
    for recipe in asked.recipes or RECIPES:
        measured = measure(recipe)
        RECORD.write_text(json.dumps(read() | {recipe: measured}, indent=1) + "\n", encoding="utf-8")
        print(f"{recipe}: {measured['right']} of {measured['count']}, {measured['train_seconds']:.0f} s")


def read() -> dict[str, Any]:
    """The measurements so far, by recipe."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def measure(recipe: str) -> dict[str, Any]:
    """Trains the judge of a recipe's data set on its judge part and asks it about the test part."""
    run = load_run(recipe)
    source = run.data.build()
    parts = parts_of(source, run.data)
    train, test = (ImageSet.of_source(source, part).kept() for part in (parts.judge, parts.test))
    steps, num_classes = steps_for(run.evaluation.judge_steps, len(parts.judge)), int(source.labels.max()) + 1
    start = time.process_time()
    judge = train_judge(
        train, source.labels[parts.judge], num_classes, steps=steps, seed=SEED, mirrored=run.data.mirrored
    )
    seconds, start = time.process_time() - start, time.process_time()
    features = test.map(judge.features)
    told = time.process_time() - start
    right = judge.classes(features) == source.labels[parts.test]
    reference = frechet.Statistics.of(ImageSet.of_source(source, parts.train).map(judge.features))
    return {
        "judge": NAME,
        "images": len(parts.judge),
        "steps": steps,
        "right": int(right.sum()),
        "count": len(right),
        "accuracy": float(right.mean()),
        "interval": share_interval(float(right.mean()), len(right)),
        "by_class": {
            name: float(right[source.labels[parts.test] == label].mean()) for label, name in enumerate(run.id2label)
        },
        "distance_real": frechet.distance(frechet.Statistics.of(features), reference),
        "live_features": int((reference.cov.diagonal() > 1e-9).sum()),
        "covariance_rank": int(np.linalg.matrix_rank(reference.cov)),
        "train_seconds": seconds,
        "milliseconds_per_image": 1e3 * told / len(right),
        "sha256": judge.fingerprint,
        "data": source.fingerprint,
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": str(date.today()),
    }


def table(record: dict[str, Any]) -> str:
    """Accuracy and cost by data set, as Markdown."""
    lines = [
        "| data set | trained on | steps | right on real test images | 95 % (Wilson) | training | per image |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe, one in record.items():
        low, high = one["interval"]
        lines.append(
            f"| {recipe} | {one['images']:,} images | {one['steps']:,} | {one['right']:,} of {one['count']:,}, "
            f"{one['accuracy']:.1%} | {low:.1%} to {high:.1%} | {one['train_seconds']:.0f} s | "
            f"{one['milliseconds_per_image']:.2f} ms |"
        )
    lines += ["", "Processor seconds of one thread:"]
    for facts in dict.fromkeys((one["date"], one["machine"], one["versions"]) for one in record.values()):
        lines.append(f"{'; '.join(facts)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
