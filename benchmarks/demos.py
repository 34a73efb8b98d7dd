"""Writes the models that come with the library (``demo:NAME``) from finished runs of the recipes of the same names.

    python benchmarks/demos.py runs/digits runs/fashion-mnist

Each becomes ``src/udit/demos/NAME``: fused averaged weights in float16, and a card with the scores of exactly these
weights, computed here, beside those of the run's float32 weights (``udit eval RUN`` comes first).
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

import udit
from udit.benchmarking.report import machine
from udit.evaluation.report import Report
from udit.scoring import find_report
from udit.store import read_run_config, save

HOME = Path(udit.__file__).parent / "demos"
DATA = {
    "digits": (
        "scikit-learn's copy of the Optical Recognition of Handwritten Digits data set (E. Alpaydin and C. Kaynak, UCI "
        "Machine Learning Repository, CC BY 4.0)"
    ),
    "fashion-mnist": "Fashion-MNIST (H. Xiao, K. Rasul and R. Vollgraf, arXiv 1708.07747; Zalando SE, MIT licence)",
}
LARGEST = {"digits": 1_000_000, "fashion-mnist": 5_000_000}
"""Most bytes of the weights."""


def write(run_folder: Path) -> None:
    """The demo of one run, and its card."""
    run = read_run_config(run_folder)
    name = run.name
    system = udit.load(run_folder)
    target = save(system.fused(), HOME / name, precision="float16")
    size = (target / "model.safetensors").stat().st_size
    assert size <= LARGEST[name], f"{name} takes {size:,} bytes"
    demo = udit.evaluate(f"demo:{name}", again=True)
    assert demo is not None
    before = find_report(run_folder / "evaluation", demo.setting | {"weights": system.fingerprint})
    assert before is not None, f"score the run first: udit eval {run_folder}"
    (target / "README.md").write_text(card(name, size, demo, before), encoding="utf-8")
    scores = {
        "demo": json.loads(demo.model_dump_json()),
        "run, float32, not fused": json.loads(before.model_dump_json()),
        "made": made(),
    }
    page = Path("docs/results") / f"demo-{name}.json"
    page.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target}, {size:,} bytes of weights, and {page}")


def made() -> str:
    """Where and with what the scores were computed."""
    threads = torch.get_num_threads()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()['processor']}, {threads} thread{'s' * (threads > 1)}, "
        f"torch {torch.__version__}, udit {udit.__version__}"
    )


def card(name: str, size: int, demo: Report, before: Report) -> str:
    """``README.md`` of a demo."""
    steps = udit.load(f"demo:{name}").config.steps
    return f"""---
library_name: udit
license: apache-2.0
pipeline_tag: unconditional-image-generation
tags: [diffusion, u-dit]
---

# {name}: a U-DiT of {size / 1e6:.1f} MB

Trained by `udit train {name}` for {steps:,} steps.
Data: {DATA[name]}.
The weights are the averaged (EMA) ones, fused, and stored in float16; they are licensed as udit is, Apache-2.0.

    udit sample demo:{name} --n 16 --out samples

Scores of these weights, and of the run before its weights were fused and rounded
(N = {demo.num_samples:,}, {demo.judge}, right on {100 * demo.judge_on_test:.1f} % of real test images):

| | class agreement | Fréchet distance, judge features |
| --- | --- | --- |
| these weights | {scores_of(demo)} |
| the run, float32 | {scores_of(before)} |

{made()}
"""


def scores_of(report: Report) -> str:
    """Agreement and distance with their intervals of 95 %, as two cells."""
    low, high = report.agreement_interval
    near, far = report.distance_interval
    return (
        f"{100 * report.agreement:.1f} % ({100 * low:.1f} to {100 * high:.1f}) | "
        f"{report.distance:.4f} ({near:.4f} to {far:.4f})"
    )


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        write(Path(folder))
