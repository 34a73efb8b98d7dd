"""Trains every family on the digits with the demo's recipe, changing only the model, and scores it: ``make digits``.

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
        if name.endswith("-tiny") and not entry.config.condition_shape
    },
    "HDiT-tiny, EDM": ["model=HDiT-tiny", "diffusion.kind=edm"],
}
"""Overrides of the recipe, by case."""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of {', '.join(CASES)}; all if none is given")
    parser.add_argument("--table", action="store_true", help="print the table")
    parser.add_argument("--runs", type=Path, default=Path("runs/families"), help="where the run folders are")
    asked = parser.parse_args()
    if unknown := [case for case in asked.cases if case not in CASES]:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    if asked.table:
        print(table(read()))
        return
    for case in asked.cases or CASES:
        if case not in read():
            measured = measure(case, asked.runs / case.replace(", ", "-"))
            RECORD.write_text(json.dumps(read() | {case: measured}, indent=1) + "\n", encoding="utf-8")
            print(f"{case}: {measured['agreement']:.1%} class agreement")


def read() -> dict[str, Any]:
    """The measurements so far, in the order of the cases."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    return {case: record[case] for case in CASES if case in record}


def measure(case: str, out: Path) -> dict[str, Any]:
    """Trains and scores one case; resumes if it was interrupted."""
    words = [*CASES[case], f"out={out}"]
    run = load_run("digits", words)
    for command in (["train", "digits", *words], ["eval", str(out)]):
        subprocess.run([sys.executable, "-m", "udit", *command, "--no-progress"], check=True, stdout=subprocess.DEVNULL)
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
        "weights": report.protocol["weights"],
        "machine": f"{processor()}, {torch.get_num_threads()} thread(s)",
        "versions": f"udit {udit.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "date": str(date.today()),
    }


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
        f"images at learning rate {run.training.lr:g} for every family, tuned for none; then `udit eval`: "
        f"{some['num_samples']} samples of {run.sampling.steps} network evaluations each at guidance "
        f"{run.sampling.guidance:g}. "
        f"Real test images get {some['judge_on_test']:.1%} agreement. "
        "The Fréchet distance uses the judge's features and is not FID. "
        "Sizes differ: this shows that each family trains, samples and scores, not which is best. The row with "
        "objective edm also sets `diffusion.kind=edm`.",
        "",
        "| model | objective, sampler | parameters | MACs | class agreement (95 %) | Fréchet distance (95 %) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case, one in record.items():
        low, high = one["agreement_interval"]
        near, far = one["distance_interval"]
        lines.append(
            f"| {case.partition(',')[0]} | {one['objective']}, {one['sampler']} | {one['parameters']:,} "
            f"| {one['macs']:,} | {one['agreement']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {one['distance']:.3f} ({near:.3f} to {far:.3f}) |"
        )
    lines += ["", "Measured by `make digits`, recorded in `benchmarks/digits.json`:"]
    for facts in dict.fromkeys((one["date"], one["machine"], one["versions"]) for one in record.values()):
        lines.append(f"- {'; '.join(facts)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
