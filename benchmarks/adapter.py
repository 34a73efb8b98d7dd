"""A low-rank adapter that turns the digits' model to inverted digits: its size, its scores, and merged beside unmerged.

    python benchmarks/adapter.py --images IMAGES    # the inverted digits, one folder for each class
    udit train folder data.root=IMAGES data.size=8 data.channels=1 data.flip=false init_from=demo:digits out=RUN \\
        'training.adapter={rank: 3, alpha: 6}' training.steps=1600 training.batch_size=32 training.lr=5e-3 \\
        training.lr_warmup=20 'training.lr_schedule={kind: wsd, decay: 0.4}' training.ema_decay=0.995
    python benchmarks/adapter.py RUN                # benchmarks/adapter.json, and its table in docs/training.md
    python benchmarks/adapter.py --page             # the table alone

One thread; a minute beside the training's five. Needs peft.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import udit
from udit.run.recipes import load_run
from udit.store import read_run_config
from udit.tuning.search import Scorer

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "benchmarks" / "adapter.json", ROOT / "docs" / "training.md"
MARK = "<!-- scores, by benchmarks/adapter.py -->"
"""Before and behind the table that this script writes into the page."""
ORIGIN, SCORED, COMPARED = "demo:digits", 1000, 100


def write_inverted(root: Path) -> None:
    """The digits with black and white exchanged, as PNGs in a folder for each class."""
    source = load_run("digits").source()
    for i in range(len(source)):
        folder = root / str(int(source.labels[i]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - np.asarray(source.image(i))[0]).save(folder / f"{i:04d}.png")


def measure(folder: Path) -> dict[str, Any]:
    """Size of the adapter, scores of the origin and of the adapted model, and how far merging moves samples."""
    run = read_run_config(folder)
    merged = udit.load(ORIGIN, adapter=folder / "adapter")
    apart = udit.load(ORIGIN, adapter=folder / "adapter", merge=False)
    sampling = run.sampling
    scorer = Scorer.of(run, merged, folder / "evaluation" / "judge.safetensors", SCORED)
    rows = []
    for name, system in (("before", udit.load(ORIGIN)), ("with the adapter", merged)):
        scored = dataclasses.replace(scorer, system=system.fused()).measure(sampling)
        kept = ("distance", "distance_interval", "agreement", "agreement_interval")
        rows.append({"model": name, **{key: getattr(scored, key) for key in kept}})
    labels = [i % 10 for i in range(COMPARED)]
    one, other = (
        [step.x for step in system.steps(range(COMPARED), labels, sampling=sampling, batch_size=COMPARED)][-1]
        for system in (merged, apart)
    )
    whole = sum(p.numel() for p in udit.load(ORIGIN).backbone.parameters())
    own = sum(p.numel() for name, p in apart.backbone.named_parameters() if ".lora_" in name)
    return {
        "weights": merged.fingerprint,
        "images": SCORED,
        "adapter": own,
        "origin": whole,
        "largest_difference": float((one - other).abs().max()),
        "rows": rows,
        "versions": f"udit {udit.__version__}, torch {torch.__version__}",
    }


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    lines = ["| inverted digits | distance | of the class asked for |", "| --- | ---: | ---: |"]
    for row in record["rows"]:
        low, high = row["distance_interval"]
        least, most = (100 * share for share in row["agreement_interval"])
        distance = f"{row['distance']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['model']} | {distance} | {row['agreement']:.1%} ({least:.1f} to {most:.1f}) |")
    share = record["adapter"] / record["origin"]
    told = (
        f"Measured by `python benchmarks/adapter.py`: `{ORIGIN}`, trained on the digits, and an adapter of "
        f"{record['adapter']:,} weights, {share:.1%} of its {record['origin']:,}, trained on the digits with black and "
        f"white exchanged. Of {COMPARED} samples, merged and unmerged, no pixel in -1 to 1 differs by more than "
        f"{record['largest_difference']:.0e}."
    )
    return "\n".join([told, "", *lines])


def page(record: dict[str, Any], text: str) -> str:
    """The page, with the record's scores in it."""
    before, _, behind = text.split(MARK)
    return f"{before}{MARK}\n\n{table(record)}\n\n{MARK}{behind}"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--images", type=Path, help="writes the inverted digits there, and nothing else")
    parser.add_argument("--page", action="store_true", help="the table alone, from the record")
    given = parser.parse_args()
    if given.images is not None:
        write_inverted(given.images)
        return
    if not given.page:
        torch.set_num_threads(1)
        RECORD.write_text(json.dumps(measure(given.run), indent=1) + "\n", encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(page(record, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
