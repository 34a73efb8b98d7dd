"""How far prompts of pairs that were never trained on are followed: two digits on a canvas (docs/text.md).

    make language-model                                  # the language model, 93 MB
    python benchmarks/two_digits.py               # trains and scores what two_digits.json lacks; resumes
    python benchmarks/two_digits.py layers none   # some variants alone
    python benchmarks/two_digits.py --score layers   # scores a run that is not finished
    python benchmarks/two_digits.py --page        # the table of docs/text.md

A variant takes up to an hour on one idle thread (OMP_NUM_THREADS=1), its scores a few minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import udit
from udit.data.config import DigitsData
from udit.data.sources import digits, parts_of
from udit.data.two_digits import HELD_OUT, Prompt, composed, layouts, prompts
from udit.evaluation.reader import Reader, train_reader
from udit.images import grid, save_png
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.training.trainer import train

ROOT = Path(__file__).parent.parent
RECORD, PAGE = Path(__file__).with_suffix(".json"), ROOT / "docs" / "text.md"
IMAGE = ROOT / "docs" / "images" / "two-digits.png"
SIZE, SAMPLES = 16, 1000
ORDER = (5, 2, 7, 0, 3, 6, 1, 4)
"""Which of the eight layers each block reads where they are shuffled."""
VARIANTS = {
    "layers": "block i reads layer round(1 + i (L - 1) / (n - 1))",
    "shuffled": "the same eight layers in another order",
    "last": "all blocks read the last layer",
    "none": "every caption is dropped: a model without text",
}
BEGIN, END = "<!-- two digits: begin -->", "<!-- two digits: end -->"


def run_of(variant: str, root: Path) -> Run:
    """The run of a variant."""
    words = [f"out={root / variant}", f"name={variant}"]
    if variant == "none":
        words += ["training.label_dropout=1", "sampling.guidance=1"]
    run = load_run("two-digits", words)
    assert run.text is not None and run.text.layers is not None and run.text.depth is not None
    if variant == "shuffled":
        run = run.replace(text=run.text.replace(layers=tuple(run.text.layers[i] for i in ORDER)))
    elif variant == "last":
        run = run.replace(text=run.text.replace(layers=(run.text.depth,) * len(run.text.layers)))
    return run


def asked() -> list[Prompt]:
    """Prompts of held-out pairs: every pair, layout and caption equally often."""
    known = [prompt for pair in HELD_OUT for layout in layouts(SIZE) for prompt in prompts(pair, layout)]
    return list(itertools.islice(itertools.cycle(dict.fromkeys(known)), SAMPLES))


def by_kind(follows: np.ndarray, wanted: list[Prompt]) -> dict[str, list[int]]:
    """How many images follow their prompt, and of how many, for each kind of caption and in all."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for does, prompt in zip(follows.tolist(), wanted, strict=True):
        for kind in ("all", prompt.kind):
            found[kind][0] += int(does)
            found[kind][1] += 1
    return dict(found)


def real(reader: Reader) -> dict[str, list[int]]:
    """The same of real canvases of these pairs, whose digits neither generator nor reader has seen."""
    part = parts_of(digits(), DigitsData()).test
    images, wanted = [], []
    for i, (canvas, pair, layout) in enumerate(composed(HELD_OUT, SIZE, SAMPLES, part, (1, "two digits, real"))):
        images.append(canvas)
        captions = prompts(pair, layout)
        wanted.append(captions[i % len(captions)])
    return by_kind(reader.follows(np.stack(images), wanted), wanted)


def score(run: Run, reader: Reader, with_grid: bool) -> dict[str, Any]:
    """Samples of a run, and how many follow their prompts."""
    wanted = asked()
    drawn = udit.generate(run.out, range(SAMPLES), prompts=[prompt.text for prompt in wanted], batch_size=100)
    images = drawn.images(progress=True)
    follows = reader.follows(images.numpy(), wanted)
    if with_grid:
        shown = [i for i in range(SAMPLES) if i % 29 == 0][:24]
        titles = [wanted[i].text for i in shown]
        save_png(grid(images[shown], titles, 6, side=128), IMAGE)
    lines = (run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "followed": by_kind(follows, wanted),
        "steps": drawn.system.config.steps,
        "of_steps": run.training.steps,
        "val_loss": next((v for v in (json.loads(line).get("val_loss") for line in reversed(lines)) if v), None),
        "parameters": drawn.system.num_parameters,
        "layers": list(run.text.layers or ()) if run.text else [],
        "language_model": run.text.sha256 if run.text else None,
        "sampling": run.sampling.model_dump(mode="json", exclude_defaults=True),
        "weights": drawn.system.fingerprint,
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }


def read() -> dict[str, Any]:
    """What was measured so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def write(changes: dict[str, Any]) -> None:
    """Adds to what was measured."""
    RECORD.write_text(json.dumps(read() | changes, indent=1) + "\n", encoding="utf-8")


def share(pair: list[int]) -> str:
    """Of how many prompts, in per cent."""
    return f"{100 * pair[0] / pair[1]:.1f}"


def table(record: dict[str, Any]) -> str:
    """The rows of the page; a reader is trained on the machine that scores, so each has a row of what it reads."""
    kinds = ["all", "above", "below", "left", "right", "two"]
    lines = [
        f"| prompts followed, % | steps | {' | '.join(kinds)} | of real canvases |",
        f"|---|---:|{'---:|' * len(kinds)}---:|",
    ]
    reader = None
    for variant, what in VARIANTS.items():
        if variant in record:
            found = record[variant]
            if found["reader"] != reader:
                reader = found["reader"]
                cells = " | ".join(share(found["real"][kind]) for kind in kinds)
                lines.append(f"| real canvases, as the reader of the rows below sees them | | {cells} | 100 |")
            cells = " | ".join(share(found["followed"][kind]) for kind in kinds)
            reached = found["real"]["all"][0] / found["real"]["all"][1]
            of_real = 100 * found["followed"]["all"][0] / found["followed"]["all"][1] / reached
            steps = f"{found['steps']:,}" + (
                "" if found["steps"] == found["of_steps"] else f" of {found['of_steps']:,}"
            )
            lines.append(f"| {what} | {steps} | {cells} | {of_real:.0f} |")
    missing = [variant for variant in VARIANTS if variant not in record]
    return "\n".join(lines) + (f"\n\nNot measured yet: {', '.join(missing)}." if missing else "")


def write_page() -> None:
    """Puts the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(read())}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"any of {', '.join(VARIANTS)}")
    parser.add_argument("--runs", type=Path, default=Path("runs/two-digits"), help="where the run folders are")
    parser.add_argument("--score", action="store_true", help="score runs as they are, and do not train")
    parser.add_argument("--page", action="store_true", help="write the table of docs/text.md alone")
    given = parser.parse_args()
    if unknown := [variant for variant in given.variants if variant not in VARIANTS]:
        parser.error(f"no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    if not given.page:
        reader = train_reader(SIZE)
        seen = {"real": real(reader), "reader": reader.judge.fingerprint[:16]}
        for variant in given.variants or VARIANTS:
            known = read().get(variant)
            if known and known["steps"] == known["of_steps"] and not given.score:
                continue
            run = run_of(variant, given.runs)
            if given.score or train(run).finished:
                write({variant: score(run, reader, with_grid=variant == "layers") | seen})
    write_page()


if __name__ == "__main__":
    main()
