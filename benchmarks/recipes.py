"""The recipe of Fashion-MNIST with one change at a time: times, shift, optimiser, schedule, EMA length; then what wins.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/recipes.py /tmp/recipes      # five to nine hours
    PYTHONPATH=src python benchmarks/recipes.py --page                              # the table alone, at any time

It trains each case for 1,000 steps, all of them with seed 0 first, then with two seeds more: those of ``ASKED``, and of
the others what beat the shipped recipe with seed 0. Then the changes that helped together, and the winner for 3,000
steps. benchmarks/recipes.json is written after every score. Started again with the same folder it goes on, within a
training from its last checkpoint. Beyond --minutes of one thread (default 350) no case is begun that would leave no
time for the last training.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from digits import processor

import udit
from udit import dist
from udit.assemble import System
from udit.run.recipes import load_run
from udit.training.trainer import Trainer
from udit.tuning.search import Scorer

ROOT = Path(__file__).parent.parent
RECORD, PAGE = Path(__file__).with_suffix(".json"), ROOT / "docs" / "training.md"
MARK = "<!-- scores, by benchmarks/recipes.py -->"
"""Before and behind the table that this script writes into the page."""
RECIPE, SHIPPED = "fashion-mnist", "shipped"
SEEDS, STEPS, LONG = (0, 1, 2), 1000, 3000
SCORED = 2000
SAMPLING = {"sampler": "flow-heun", "steps": 10}
"""Half of the recipe's steps: 19 evaluations an image, with the recipe's guidance."""
CASES: dict[str, list[str]] = {
    SHIPPED: [],
    "logit-normal times": ["diffusion.density=logit-normal"],
    "Muon": ["training.optimizer=muon"],
    "shift 2": ["diffusion.shift=2"],
    "shift 0.5, of the resolution": ["diffusion.shift=resolution"],
    "cosine schedule": ["training.lr_schedule=cosine"],
    "Muon, twice the rate": ["training.optimizer=muon", "training.lr=4e-3"],
}
"""Overrides of the recipe; two cases that begin with the same key exclude each other."""
ASKED = {SHIPPED, "logit-normal times", "Muon", "shift 2"}
"""Cases that get every seed, whatever they do with the first."""
TOGETHER, WINNER, OLD = "together", "winner", "the library's demo"
LENGTHS = (0.05, 0.075, 0.1, 0.15, 0.2)
"""EMA lengths (sigma_rel); the recipe's own EMA is exponential, of 500 steps."""
EXAMINED = (1000, 1500, 2000)
"""Steps of the last training whose average is scored as well."""
SECONDS = 0.65
"""Of a step on one thread of an Intel Xeon with AVX-512; what the plan counts with before a step was timed."""


def read() -> dict[str, Any]:
    """What was measured so far."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    return found


def keep(name: str, row: dict[str, Any]) -> None:
    """Adds a row to the record and says so."""
    facts = {"versions": f"udit {udit.__version__}, torch {torch.__version__}", "machine": processor()}
    record = read() | {name: row | facts | {"date": str(date.today())}}
    temporary = RECORD.with_suffix(".part")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(RECORD)
    print(
        f"{name}: {row['distance']:.3f} ({row['distance_interval'][0]:.3f} to {row['distance_interval'][1]:.3f})",
        flush=True,
    )


def row_name(case: str, seed: int, *, length: float | None = None, step: int | None = None) -> str:
    """The key of a row of the record."""
    words = [f"{case}, seed {seed}"]
    words += [f"step {step}"] if step is not None else []
    return ", ".join(words + ([f"EMA {length:g}"] if length is not None else []))


@dataclass(frozen=True)
class Bench:
    """Trains and scores cases.

    Attributes:
        folder: of all run folders.
        scorer: with the judge of the data set; its system is replaced.
    """

    folder: Path
    scorer: Scorer

    @staticmethod
    def of(folder: Path) -> Bench:
        """With the judge, which is trained where there is none yet."""
        folder.mkdir(parents=True, exist_ok=True)
        judge = folder / "judge.safetensors"
        return Bench(folder, Scorer.of(load_run(RECIPE), udit.load(f"demo:{RECIPE}"), judge, SCORED))

    def score(self, system: System) -> dict[str, Any]:
        """Scores of a system's images of the same seeds and labels."""
        system = system.fused()
        scorer = dataclasses.replace(self.scorer, system=system)
        found = scorer.measure(system.config.sampling.replace(**SAMPLING))
        kept = ("distance", "distance_interval", "agreement", "agreement_interval", "seconds")
        return {key: getattr(found, key) for key in kept} | {"weights": system.fingerprint}

    def measure(self, case: str, words: list[str], seed: int, steps: int = STEPS) -> None:
        """Trains a case where the record lacks it, and scores it; its snapshots' averages as well, if it has any."""
        name, out = row_name(case, seed), self.folder / f"{case.replace(' ', '-').replace(',', '')}-{seed}"
        averaged = [*LENGTHS] if case in (SHIPPED, WINNER) else []
        every = [f"training.posthoc_ema.every={steps // 20}"] if averaged else []
        own = [f"training.steps={steps}", "training.save_every=100", f"seed={seed}", f"out={out}"]
        if name not in read():
            began, done = time.process_time(), 0
            for _ in Trainer(load_run(RECIPE, [*words, *own, *every]), dist.World()).steps():
                done += 1
            took = (time.process_time() - began) / max(1, done) if done else SECONDS
            scores = self.score(udit.load(out))
            keep(name, scores | {"words": words, "steps": steps, "seconds_per_step": took})
        wanted: list[tuple[float, int | None]] = [(length, None) for length in averaged]
        wanted += [(length, step) for step in EXAMINED for length in (0.1,) if case == WINNER]
        for length, step in wanted:
            if (key := row_name(case, seed, length=length, step=step)) not in read():
                average = udit.posthoc_ema(out, length, step)
                keep(key, self.score(average.system) | {"steps": average.step, "fit_error": average.error})
        if not averaged and (out / "checkpoints").is_dir():
            shutil.rmtree(out / "checkpoints")


def spent(record: dict[str, Any]) -> float:
    """Minutes of one thread that the record's trainings and scores took."""
    trained = sum(row["seconds_per_step"] * row["steps"] for row in record.values() if "seconds_per_step" in row)
    return (trained + sum(row["seconds"] * SCORED for row in record.values())) / 60


def distances(record: dict[str, Any], case: str, **which: Any) -> list[float]:
    """Of a case's seeds, as far as they were measured."""
    names = [row_name(case, seed, **which) for seed in SEEDS]
    return [record[name]["distance"] for name in names if name in record]


def helped(record: dict[str, Any]) -> list[str]:
    """Cases that are better than the shipped recipe with every seed; of those that change one thing, the best."""
    base = distances(record, SHIPPED)
    best: dict[str, str] = {}
    for case, words in CASES.items():
        own = distances(record, case)
        if case == SHIPPED or len(own) < len(base) or not all(a < b for a, b in zip(own, base, strict=True)):
            continue
        thing = words[0].split("=")[0]
        if thing not in best or fmean(own) < fmean(distances(record, best[thing])):
            best[thing] = case
    return list(best.values())


def words_of(record: dict[str, Any], case: str) -> list[str]:
    """The overrides of a case, of all changes together too."""
    if case == TOGETHER:
        return [word for one in helped(record) for word in CASES[one]]
    return CASES[case]


def winner(record: dict[str, Any]) -> str:
    """The case of the least mean distance over the seeds, among those with all of them."""
    complete = {case: distances(record, case) for case in [*CASES, TOGETHER]}
    means = {case: fmean(found) for case, found in complete.items() if len(found) == len(SEEDS)}
    return min(means, key=lambda case: means[case])


def worth(case: str) -> bool:
    """Whether a case gets further seeds: all of ``ASKED``, others where they beat the shipped recipe with the first."""
    own, base = distances(read(), case), distances(read(), SHIPPED)
    return case in ASKED or bool(own and base and own[0] < base[0])


def plan() -> Iterator[tuple[str, int]]:
    """Cases and seeds in their order; what helped is asked once all of its parts were measured."""
    yield from ((case, SEEDS[0]) for case in CASES)
    yield from ((case, seed) for seed in SEEDS[1:] for case in CASES if worth(case))
    if len(helped(read())) > 1:
        yield from ((TOGETHER, seed) for seed in SEEDS)


def measure(folder: Path, minutes: float) -> None:
    """Trains and scores what the record lacks."""
    bench = Bench.of(folder)
    if OLD not in read():
        keep(OLD, bench.score(udit.load(f"demo:{RECIPE}")) | {"steps": LONG})
    last = SECONDS * LONG / 60 + 10
    for case, seed in plan():
        record = read()
        if row_name(case, seed) in record or spent(record) + last + SECONDS * STEPS / 60 < minutes:
            bench.measure(case, words_of(record, case), seed)
    best = winner(read())
    bench.measure(WINNER, words_of(read(), best), SEEDS[0], LONG)


def cell(row: dict[str, Any]) -> str:
    """A distance with its interval."""
    low, high = row["distance_interval"]
    return f"{row['distance']:.2f} ({low:.2f} to {high:.2f})"


def line(record: dict[str, Any], title: str, names: list[str]) -> str:
    """A line of the table: the mean over seeds, each seed, agreement."""
    rows = [record[name] for name in names if name in record]
    return (
        f"| {title} | {rows[0]['steps']:,} | {fmean(row['distance'] for row in rows):.2f} | "
        f"{', '.join(cell(row) for row in rows)} | {fmean(row['agreement'] for row in rows):.1%} |"
    )


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    lines = [
        "| recipe | steps | distance, mean | each seed (95 %) | of the class asked for |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    for case in [*CASES, TOGETHER]:
        if distances(record, case):
            parts = f" ({'; '.join(helped(record))})" if case == TOGETHER else ""
            lines.append(line(record, case + parts, [row_name(case, seed) for seed in SEEDS]))
            for length in LENGTHS:
                if distances(record, case, length=length):
                    names = [row_name(case, seed, length=length) for seed in SEEDS]
                    lines.append(line(record, f"{case}, EMA of length {length:g}", names))
    if OLD in record:
        lines.append(line(record, f"{SHIPPED}, {OLD}", [OLD]))
    if (first := row_name(WINNER, SEEDS[0])) in record:
        title = f"winner: {winner(record)}"
        lines.append(line(record, title, [first]))
        for step in (*EXAMINED, None):
            named = {length: row_name(WINNER, SEEDS[0], length=length, step=step) for length in LENGTHS}
            lines += [
                line(record, f"{title}, EMA of length {length:g}", [name])
                for length, name in named.items()
                if name in record
            ]
    timed = [row["seconds_per_step"] for row in record.values() if "seconds_per_step" in row]
    told = f"{SCORED:,} images each, {SAMPLING['steps']} steps of {SAMPLING['sampler']}; a step of training took "
    told += f"{min(timed):.2f} to {max(timed):.2f} s of one thread, all of it {spent(record) / 60:.1f} hours."
    for fact in ("machine", "versions", "date"):
        told += f" {', '.join(sorted({row[fact] for row in record.values()}))}."
    left = [case for case in CASES if len(distances(record, case)) < len(SEEDS)]
    unfinished = [f"Not measured with all seeds: {'; '.join(left)}."] if left else []
    return "\n".join([*lines, "", told, *unfinished])


def page(record: dict[str, Any], text: str) -> str:
    """The page, with the record's scores in it."""
    before, _, behind = text.split(MARK)
    return f"{before}{MARK}\n\n{table(record)}\n\n{MARK}{behind}"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="of the run folders")
    parser.add_argument("--minutes", type=float, default=350, help="of one thread, in all")
    parser.add_argument("--page", action="store_true", help="the table alone, from the record")
    asked = parser.parse_args()
    if not asked.page:
        if asked.folder is None:
            parser.error("give the folder of the run folders, e.g. /tmp/recipes")
        torch.set_num_threads(1)
        dist.keep_freed_memory()
        measure(asked.folder, asked.minutes)
    PAGE.write_text(page(read(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
