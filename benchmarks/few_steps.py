"""MeanFlow and consistency tuning on the digits at 1, 2, 4 and 50 evaluations, beside the flow that is sampled in 15.

    udit train digits-mean-flow out=MEAN            # keeps the checkpoints of steps 2,000 and 3,000
    udit train digits-consistency out=TUNED
    python benchmarks/few_steps.py MEAN TUNED       # benchmarks/few_steps.json, and its table in docs/training.md
    python benchmarks/few_steps.py --early MEAN     # adds what step 2,000 has reached
    python benchmarks/few_steps.py --page           # the table alone

One thread; a minute. All rows are of one process; seconds are processor time, the least of several rounds in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import udit
from udit.assemble import System, denoiser_of, objective_of
from udit.data.sources import parts_of
from udit.diffusion.config import SamplingConfig
from udit.run.config import Run
from udit.run.recipes import load_run
from udit.store import checkpoint_of, read_run_config
from udit.tuning.search import Scorer

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "benchmarks" / "few_steps.json", ROOT / "docs" / "training.md"
MARK = "<!-- scores, by benchmarks/few_steps.py -->"
"""Before and behind the table that this script writes into the page."""
SCORED, ROUNDS, TRAINED = 1000, 5, 20
EARLY = 2000
"""A step of MeanFlow's training that is scored as well."""
BASE = "flow"


def settings(systems: dict[str, System]) -> list[tuple[str, SamplingConfig]]:
    """Every row's model and setting."""
    base = systems[BASE].config.sampling
    rows = [(BASE, base.replace(steps=steps)) for steps in (1, 2, 4, 15, 50)]
    for name in ("mean-flow", "consistency"):
        rows += [(name, systems[name].config.sampling.replace(steps=steps)) for steps in (1, 2, 4, 50)]
    return rows


def judged(run: Run, system: System) -> Scorer:
    """What scores, with the judge of the digits."""
    return Scorer.of(run, system, run.out / "evaluation" / "judge.safetensors", SCORED)


def early(folder: Path) -> dict[str, Any]:
    """Scores of one evaluation with the weights of an earlier step."""
    run = read_run_config(folder)
    system = udit.load(checkpoint_of(folder, EARLY)).fused()
    score = judged(run, system).measure(system.config.sampling.replace(steps=1))
    kept = ("distance", "distance_interval", "agreement", "agreement_interval")
    return {"step": EARLY, "weights": system.fingerprint, **{key: getattr(score, key) for key in kept}}


def scored(run: Run, systems: dict[str, System]) -> list[dict[str, Any]]:
    """Scores and seconds of every row, by one judge."""
    scorer = judged(run, systems[BASE])
    rows, found = settings(systems), []
    images = {}
    seconds = [float("inf")] * len(rows)
    for round_ in range(ROUNDS):
        for i, (name, sampling) in enumerate(rows):
            if round_ and sampling.steps > 15:
                continue
            began = time.process_time()
            drawn = systems[name].generate(range(SCORED), scorer.labels, sampling=sampling, batch_size=250)
            images[i] = torch.cat(list(drawn)).numpy()
            seconds[i] = min(seconds[i], (time.process_time() - began) / SCORED)
    for i, (name, sampling) in enumerate(rows):
        score = scorer.score(sampling, images[i], seconds[i])
        kept = ("distance", "distance_interval", "agreement", "agreement_interval", "seconds")
        setting = {"sampler": sampling.sampler, "steps": sampling.steps, "guidance": sampling.guidance}
        found.append({"model": name, **setting, **{key: getattr(score, key) for key in kept}})
    return found


def step_seconds(run: Run) -> Callable[[], float]:
    """A function that takes a training step, without its optimiser, and returns its processor seconds."""
    model = udit.build(run.model, seed=run.seed).train()
    denoiser, objective = denoiser_of(udit.System(_config(run), model).config, model), objective_of(run)
    source = run.data.build()
    ids = [int(i) for i in parts_of(source, run.data).train[: run.training.batch_size]]
    x0 = run.codec.build().raw(torch.stack([torch.from_numpy(source.image(i).copy()) for i in ids]))
    labels, positions = torch.tensor([int(source.labels[i]) for i in ids]), list(range(len(ids)))

    def step() -> float:
        began = time.process_time()
        objective(denoiser, x0, labels, positions).loss.mean().backward()
        return time.process_time() - began

    return step


def _config(run: Run) -> Any:
    from udit.run.system import SystemConfig

    return SystemConfig.of(run)


def costs(runs: dict[str, Run]) -> dict[str, dict[str, float]]:
    """Steps of each run, and the processor time of one step over that of the flow's, in turns."""
    steps = {name: step_seconds(run) for name, run in runs.items()}
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(TRAINED):
        for name, step in steps.items():
            least[name] = min(least[name], step())
    return {
        name: {"steps": run.training.steps, "step_over_flow_s": least[name] / least[BASE]} for name, run in runs.items()
    }


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    base = next(row["seconds"] for row in record["rows"] if (row["model"], row["steps"]) == (BASE, 15))
    lines = [
        "| trained by | evaluations | guidance | distance | of the class asked for | time of an image |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        low, high = row["distance_interval"]
        least, most = (100 * share for share in row["agreement_interval"])
        lines.append(
            f"| {row['model']} | {row['steps']} | {row['guidance']:g} "
            f"| {row['distance']:.2f} ({low:.2f} to {high:.2f}) | {row['agreement']:.1%} ({least:.1f} to {most:.1f}) "
            f"| {1000 * row['seconds']:.2f} ms, {row['seconds'] / base:.2f} |"
        )
    told = [
        f"{name}: {cost['steps']:,} steps, each {cost['step_over_flow_s']:.1f} times as long as the flow's, "
        f"{cost['steps'] * cost['step_over_flow_s'] / record['training'][BASE]['steps']:.1f} times its training in all"
        for name, cost in record["training"].items()
        if name != BASE
    ]
    told = ["Training of " + "; of ".join(told) + "."]
    if "early" in record:
        row, cost = record["early"], record["training"]["mean-flow"]["step_over_flow_s"]
        times = row["step"] * cost / record["training"][BASE]["steps"]
        low, high = row["distance_interval"]
        told.append(
            f"After {row['step']:,} steps of MeanFlow, {times:.1f} times the flow's training, one evaluation has the "
            f"class asked for in {row['agreement']:.1%} of the images, at a distance of {row['distance']:.2f} "
            f"({low:.2f} to {high:.2f})."
        )
    return "\n".join([*lines, "", *told])


def page(record: dict[str, Any], text: str) -> str:
    """The page, with the record's scores in it."""
    before, _, behind = text.split(MARK)
    return f"{before}{MARK}\n\n{table(record)}\n\n{MARK}{behind}"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="MEAN and TUNED")
    parser.add_argument("--early", type=Path, help="MEAN")
    parser.add_argument("--page", action="store_true", help="the table alone, from the record")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.early is not None:
        record = json.loads(RECORD.read_text(encoding="utf-8")) | {"early": early(given.early)}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    elif not given.page:
        mean, tuned = given.folders
        runs = {BASE: load_run("digits"), "mean-flow": read_run_config(mean), "consistency": read_run_config(tuned)}
        loaded = {BASE: udit.load("demo:digits"), "mean-flow": udit.load(mean), "consistency": udit.load(tuned)}
        systems = {name: system.fused() for name, system in loaded.items()}
        record = {
            "weights": {name: system.fingerprint for name, system in systems.items()},
            "images": SCORED,
            "training": costs(runs),
            "rows": scored(read_run_config(mean), systems),
            "versions": f"udit {udit.__version__}, torch {torch.__version__}",
        }
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    PAGE.write_text(page(record, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
