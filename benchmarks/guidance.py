"""Kinds of guidance, image to image and interpolation on the digits: scores and images of docs/guidance.md.

    udit train digits out=RUN training.posthoc_ema.every=40
    udit train digits out=WEAK training.steps=200
    python benchmarks/guidance.py RUN WEAK          # images, benchmarks/guidance.json, and its table in the page
    python benchmarks/guidance.py --page            # the table alone

One thread; about five minutes in all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

import udit
from udit.assemble import System
from udit.data.sources import parts_of
from udit.images import grid, title_font
from udit.interpolation import Through, between
from udit.run.recipes import load_run
from udit.store import read_run_config
from udit.tuning.search import Scorer

ROOT = Path(__file__).parent.parent
RECORD, PAGE, IMAGES = ROOT / "benchmarks" / "guidance.json", ROOT / "docs" / "guidance.md", ROOT / "docs" / "images"
LABEL, SEEDS, SCORED = 3, range(12), 1000
STRONG, MILD = 6.0, 2.0
EMA, WEAK = "ema", "weak"
NORM = 4.0
"""APG's largest norm: a digit has 64 pixels in -1..1, so the norm of an image is at most 8."""
Setting = tuple[str, dict[str, Any], str | None]
"""What the row is called, the changes of the run's own setting, and the weaker model."""


def settings(scale: float) -> list[Setting]:
    """The kinds of guidance at one scale."""
    own: dict[str, Any] = {"sampler": "flow-heun", "steps": 15, "guidance": scale}
    return [
        ("plain (cfg)", own, None),
        ("interval 0.2 to 0.8", own | {"guidance_interval": (0.2, 0.8)}, None),
        ("rescale 0.7", own | {"guidance_rescale": 0.7}, None),
        ("apg", own | {"guidance_kind": "apg", "guidance_norm": NORM}, None),
        ("cfg-zero", own | {"guidance_kind": "cfg-zero", "guidance_zero_init": 0}, None),
        ("cfg-zero, first step 0", own | {"guidance_kind": "cfg-zero", "guidance_zero_init": 2}, None),
        ("autoguide, 200 steps", own, WEAK),
        ("autoguide, EMA 0.05", own, EMA),
    ]


ROWS: list[Setting] = [
    ("guidance 1 (none)", {"sampler": "flow-heun", "steps": 15, "guidance": 1.0}, None),
    *((f"{name}, w {MILD:g}", how, weak) for name, how, weak in settings(MILD)),
    *((f"{name}, w {STRONG:g}", how, weak) for name, how, weak in settings(STRONG)),
]
MARK = "<!-- scores, by benchmarks/guidance.py -->"
"""Before and behind the table that this script writes into the page."""
STRENGTHS = (0.3, 0.5, 0.7, 0.9)


def weaker(name: str | None, run: Path, weak: Path) -> System | None:
    """The weaker model of a setting."""
    if name is None:
        return None
    return udit.posthoc_ema(run, 0.05).system if name == EMA else udit.load(weak)


def systems(run: Path, weak: Path) -> dict[str | None, System]:
    """The run's system, and the same with each weaker model."""
    system = udit.load(run).fused()
    return {
        name: system.autoguided(other.fused()) if other else system
        for name in (None, WEAK, EMA)
        for other in [weaker(name, run, weak)]
    }


def sheet(rows: Sequence[tuple[str, Tensor]], side: int = 48, text: int = 190) -> Image.Image:
    """Rows of images uint8 [N, 1, H, W] with their titles on the left."""
    strips = [grid(images, columns=len(images), side=side) for _, images in rows]
    whole = Image.new("L", (text + max(strip.width for strip in strips), sum(strip.height for strip in strips)), 255)
    pen, font, top = ImageDraw.Draw(whole), title_font(), 0
    for (title, _), strip in zip(rows, strips, strict=True):
        whole.paste(strip, (text, top))
        pen.text((8, top + strip.height // 2), title, fill=0, font=font, anchor="lm")
        top += strip.height
    return whole


def draw(by_weak: dict[str | None, System]) -> None:
    """Writes the three images of the page."""
    rows = []
    for title, how, weak in ROWS:
        if how["guidance"] in (1.0, STRONG):
            images = udit.generate(by_weak[weak], SEEDS, [LABEL], sampling=how).images()
            rows.append((title, images))
    sheet(rows).save(IMAGES / "guidance.png")
    system, how = by_weak[None], ROWS[1][1]
    data = load_run("digits").data
    source = data.build()
    unseen = parts_of(source, data).test
    chosen = [next(int(i) for i in unseen if int(source.labels[i]) == digit) for digit in range(10)]
    originals = torch.stack([torch.from_numpy(source.image(i)) for i in chosen])
    rows = [("started from", originals)]
    for strength in STRENGTHS:
        images = udit.generate(
            system, range(10), [LABEL], sampling=how | {"steps": 41}, from_image=originals, strength=strength
        ).images()
        rows.append((f"strength {strength:g}", images))
    sheet(rows).save(IMAGES / "image-to-image.png")
    seeds, labels = between([3, 8], 11), Through([3, 8])
    rows = [
        ("seed 3 to 8, class 5", udit.generate(system, seeds, [5], sampling=how).images()),
        ("class 3 to 8, seed 4", udit.generate(system, [4] * 11, labels, sampling=how).images()),
        ("both", udit.generate(system, seeds, labels, sampling=how).images()),
    ]
    sheet(rows).save(IMAGES / "interpolation.png")


def measure(run: Path, by_weak: dict[str | None, System]) -> dict[str, Any]:
    """Scores of every row."""
    scorer = Scorer.of(read_run_config(run), by_weak[None], run / "evaluation" / "judge.safetensors", SCORED)
    found = []
    for title, how, weak in ROWS:
        system = by_weak[weak]
        scored = dataclasses.replace(scorer, system=system).measure(system.config.sampling.replace(**how))
        kept = ("distance", "distance_interval", "agreement", "agreement_interval")
        found.append({"name": title, **{key: getattr(scored, key) for key in kept}})
    return {"weights": by_weak[None].fingerprint, "images": SCORED, "rows": found, **scorer.protocol()}


def table(record: dict[str, Any]) -> str:
    """The scores of the record in Markdown."""
    lines = ["| guidance | distance | of the class asked for |", "| --- | ---: | ---: |"]
    for row in record["rows"]:
        low, high = row["distance_interval"]
        least, most = (100 * share for share in row["agreement_interval"])
        distance = f"{row['distance']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['name']} | {distance} | {row['agreement']:.1%} ({least:.1f} to {most:.1f}) |")
    return "\n".join(lines)


def page(record: dict[str, Any], text: str) -> str:
    """The page, with the record's scores in it."""
    before, _, behind = text.split(MARK)
    return f"{before}{MARK}\n\n{table(record)}\n\n{MARK}{behind}"


def read() -> dict[str, Any]:
    """The record."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Measures, draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="RUN and WEAK")
    parser.add_argument("--page", action="store_true", help="the table alone, from the record")
    given = parser.parse_args()
    if not given.page:
        run, weak = given.folders
        torch.set_num_threads(1)
        by_weak = systems(run, weak)
        draw(by_weak)
        RECORD.write_text(json.dumps(measure(run, by_weak), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(read(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
