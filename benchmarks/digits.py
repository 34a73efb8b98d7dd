"""Trains every family on the digits with the demo's recipe, changing only the model, and scores it: ``make digits``.

The learning rate is the one of RATES with the least validation loss after SHORT steps. The first rows were measured
before there was a choice, at the recipe's own rate; ``--again`` measures named cases anew.

python benchmarks/digits.py [CASE ...]    trains and scores what digits.json lacks; resumes when interrupted
python benchmarks/digits.py --table       prints docs/digits.md from digits.json
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

import udit
from udit.analysis import cost
from udit.evaluation.report import Report
from udit.models.catalog import CATALOG
from udit.run.recipes import load_run

RECORD = Path(__file__).with_suffix(".json")
CASES = {
    **{
        name: [f"model={name}"]
        for name, entry in CATALOG.items()
        if name.endswith("-tiny") and not entry.config.condition_shape and entry.config.clip_frames is None
    },
    "HDiT-tiny, EDM": ["model=HDiT-tiny", "diffusion.kind=edm"],
}
"""Overrides of the recipe, by case."""
RATES = (1e-3, 3e-3, 1e-2)
SHORT = 150
"""Steps after which the learning rate is chosen."""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of {', '.join(CASES)}; all if none is given")
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="where the run folders are")
    parser.add_argument("--again", action="store_true", help="measure the named cases again")
    asked = parser.parse_args()
    if unknown := [case for case in asked.cases if case not in CASES]:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    if asked.table:
        print(table(read()))
        return
    for case in asked.cases or CASES:
        if case not in read() or (asked.again and case in asked.cases):
            measured = measure(case, asked.runs / case.replace(", ", "-"))
            RECORD.write_text(json.dumps(read() | {case: measured}, indent=1) + "\n", encoding="utf-8")
            print(f"{case}: {measured['agreement']:.1%} class agreement")


def read() -> dict[str, Any]:
    """The measurements so far, in the order of the cases."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    return {case: record[case] for case in CASES if case in record}


def measure(case: str, out: Path) -> dict[str, Any]:
    """Trains and scores one case; resumes if it was interrupted."""
    losses = {rate: validation_loss(case, rate, out) for rate in RATES}
    rate = min(losses, key=lambda each: losses[each])
    words = [*CASES[case], f"training.lr={rate}", f"out={out}"]
    run = load_run("digits", words)
    udit_with("train", "digits", *words)
    udit_with("eval", str(out))
    report = Report.model_validate_json((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    counted = cost(run.model)
    return {
        "objective": run.diffusion.kind,
        "sampler": run.sampling.sampler,
        "parameters": counted.inference_parameters,
        "macs": counted.macs,
        "agreement": report.agreement,
        "agreement_interval": report.agreement_interval,
        "distance": report.distance,
        "distance_interval": report.distance_interval,
        "distance_real": report.distance_real,
        "num_samples": report.num_samples,
        "judge_on_test": report.judge_on_test,
        "val_loss": last["val_loss"],
        "lr": rate,
        "val_loss_of_rates": {f"{each:g}": loss for each, loss in losses.items()},
        "weights": report.protocol["weights"],
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": str(date.today()),
    }


def validation_loss(case: str, rate: float, out: Path) -> float:
    """After ``SHORT`` steps at a learning rate."""
    short = out.with_name(f"{out.name}-lr-{rate:g}")
    steps = [f"training.{key}={SHORT}" for key in ("steps", "save_every", "sample_every")]
    udit_with("train", "digits", *CASES[case], *steps, f"training.lr={rate}", "sampling.steps=1", f"out={short}")
    last = json.loads((short / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return float(last["val_loss"])


def udit_with(*words: str) -> None:
    """Runs a command, which goes on where it was interrupted."""
    subprocess.run([sys.executable, "-m", "udit", *words, "--no-progress"], check=True, stdout=subprocess.DEVNULL)


def processor() -> str:
    """The processor's name, where the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(record: dict[str, Any]) -> str:
    """docs/digits.md."""
    run = load_run("digits")
    some = next(iter(record.values()))
    lines = [
        "# Every family on the digits",
        "",
        f"The demo's recipe, `udit train digits model=NAME`: {run.training.steps} steps of {run.training.batch_size} "
        f"images at the learning rate of {', '.join(f'{rate:g}' for rate in RATES)} that has the least validation loss "
        f"after {SHORT} steps (a rate with a star is the recipe's own, not chosen); then `udit eval`: "
        f"{some['num_samples']} samples of {run.sampling.steps} network evaluations each at guidance "
        f"{run.sampling.guidance:g}. "
        f"Real test images get {some['judge_on_test']:.1%} agreement. "
        "The Fréchet distance uses the judge's features and is not FID. "
        "Sizes differ: this shows that each family trains, samples and scores, not which is best. The row with "
        "objective edm also sets `diffusion.kind=edm`.",
        "",
        "| model | objective, sampler | parameters | MACs | learning rate | class agreement (95 %) "
        "| Fréchet distance (95 %) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case, one in record.items():
        low, high = one["agreement_interval"]
        near, far = one["distance_interval"]
        rate = f"{one['lr']:g}" if "lr" in one else f"{run.training.lr:g}*"
        lines.append(
            f"| {case.partition(',')[0]} | {one['objective']}, {one['sampler']} | {one['parameters']:,} "
            f"| {one['macs']:,} | {rate} "
            f"| {one['agreement']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {one['distance']:.3f} ({near:.3f} to {far:.3f}) |"
        )
    lines += ["", "Measured by `make digits`, recorded in `benchmarks/digits.json`:"]
    for facts in dict.fromkeys((one["date"], one["machine"], one["versions"]) for one in record.values()):
        lines.append(f"- {'; '.join(facts)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
