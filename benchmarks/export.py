"""Exports every family, and times and scores the graphs against torch: ``make bench-export`` (docs/export.md).

python benchmarks/export.py [RUN]     measures what export.json lacks, on a run of the digits (runs/digits)
python benchmarks/export.py --table   prints docs/export.md from export.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import udit
from udit.assemble import System
from udit.benchmarking.report import machine
from udit.data.sources import parts_of
from udit.evaluation.score import score_with_judge
from udit.evaluation.shards import labels_for
from udit.exporting.calibrate import calibration_inputs
from udit.exporting.engines import open_graph
from udit.exporting.folder import compare, load, write_graph_folder
from udit.exporting.manifest import ENGINES, Manifest
from udit.exporting.program import inputs, trace
from udit.exporting.write import write_graph
from udit.models.catalog import CATALOG
from udit.run.system import SystemConfig
from udit.store import read_run_config

RECORD = Path(__file__).with_suffix(".json")
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
SUBJECTS = ("torch", "onnxruntime", "openvino", "openvino int8")
SPEED = {"U-DiT-S": (1, 4), "digits": (1, 64)}
"""Models that are timed, and their batch sizes."""
ROUNDS = 7
Work = dict[str, Callable[[], Any]]
TEXT = """# Export

<!-- not executed: installs packages -->
```console
$ pip install 'udit[export]'
```

<!-- not executed: a minute; tests/test_export.py exports and samples -->
```console
$ udit export onnx runs/digits            # or openvino; writes runs/digits/onnx
$ udit sample runs/digits/onnx            # or: udit sample runs/digits --engine onnxruntime
```

{advice}

A graph is the fused network, from x_t, t and label to prediction. Schedule, guidance, sampler and codec remain
udit's, so the same seeds give the same images, up to 1 of 255 levels. The batch size is free. H and W are free where
the model takes every multiple of some side; learned positions and windows fix a graph to one size (`--size 32x64`
sets which). DiMSUM, whose scan ONNX lacks, and HDiT, one of whose operators OpenVINO lacks, are refused. The
compiled CPU kernels are not part of a graph.

`udit export` compares graph and network at two batch sizes and, where H and W are free, two sizes. It refuses a graph
that differs by more than 1e-4 of the output's largest value, and then leaves an older export as it was. `--int8`
(OpenVINO, from a run) quantises with NNCF, with ranges measured on 256 of the run's noised training images. It cannot
agree to 1e-4; `udit export` prints its error.

A folder holds the graph, `config.json` (all else that sampling needs) and `export.json`: kind, precision, sizes,
measured errors, versions, the fingerprint of the weights, and the sha256 of every file. An altered file, a folder of
another format, another engine, or a run whose weights have changed since the export are refused. Graphs run in
float32 on the CPU and without step caching (no `--cache`). Telemetry of OpenVINO and NNCF is off.

The inputs are `x` float32 [B, C, H, W], `t` float32 [B] in the network's own unit (`config.json`: model.time) and,
for conditional models, `y` int64 [B] or float32 [B, tokens, width]; the output is [B, out_channels, H, W].

## For diffusers

<!-- not executed: tests/test_pipelines.py exports and draws -->
```console
$ udit export diffusers runs/digits --out digits-for-diffusers
```

writes a folder that diffusers loads where udit is not installed:

<!-- not executed: it takes another environment, tests/test_pipelines.py runs it -->
```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("digits-for-diffusers", trust_remote_code=True)
images = pipe(class_labels=[3, 7], seeds=[0, 1], guidance_scale=2.0).images
```

Sampler, steps and guidance are the model's own where a call does not name them (`sampler`, `num_inference_steps`,
`guidance_scale`, `guidance_interval`, `guidance_channels`, `eta`, `clip`). The images are udit's for the same seeds
and classes, up to 1 of 255 levels. Every family of the catalogue is written; models that take vectors for a condition
are refused, and so are `--size` and `--int8`. Step caching is left out.

`trust_remote_code=True` executes the folder's `pipeline.py`: read it before. It is one file, written from udit's own
sources, and holds what this model needs and no more: its network, noising process, samplers, guidance and the
pipeline. It needs torch, numpy and diffusers, opens no connection and states the version of udit that wrote it; a
later udit changes nothing about it. Before the folder is written, its network is compared with the model's, as graphs
are.

The folder holds `pipeline.py`, `model_index.json` with class names (`id2label`), the fused weights
(safetensors), the noising process as a scheduler, for other programs, `vae/` where the model is in a VAE's latents,
`README.md`, and `config.json`, by which udit reads it back: `udit.load(FOLDER)`, `udit convert FOLDER out`.

Two habits of diffusers 0.42 matter here. It executes the `pipeline.py` of all local folders in one module, where a
second folder's names replace the first one's; `pipeline.py` therefore runs itself in a module of its own. And
`save_pretrained` leaves a custom pipeline's code out; ours writes it.

The rest of this page is written by `make bench-export` and `make docs`.
"""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/digits"), help="a run of the digits recipe")
    parser.add_argument(
        "--only",
        default="",
        metavar="WORD",
        help="measure only cases that begin with this word: family, speed or score",
    )
    parser.add_argument("--table", action="store_true", help="print the page")
    asked = parser.parse_args()
    if asked.table:
        print(page(read()))
        return
    work: Work = {
        f"family {name}": lambda name=name: family(name)
        for name, row in CATALOG.items()
        if name.endswith("-tiny") and row.config.has_graph
    }
    work |= {f"speed {name}": lambda name=name: speed(name, asked.run) for name in SPEED}
    work |= {"score": lambda: score(asked.run)}
    for name, measure in work.items():
        if name.startswith(asked.only) and name not in read():
            found = measure()
            told = {"machine": machine() | {package: version(package) for package in PACKAGES}}
            RECORD.write_text(json.dumps(read() | told | {name: found}, indent=1) + "\n", encoding="utf-8")
            print(name, json.dumps(found), flush=True)


def read() -> dict[str, Any]:
    """The measurements so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def perturbed(name: str) -> System:
    """A network without zero weights; before training, gates and head are zero."""
    model, draw = udit.build(name), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return System(SystemConfig(model=model.config), model)


def family(name: str) -> dict[str, Any]:
    """Errors of one family's graphs, and whether their sizes are free."""
    system = perturbed(name).fused()
    free = system.config.model.size_step is not None
    size = None if free else system.config.model.size
    program, errors = trace(system.backbone, size), {}
    for kind in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            write_graph(kind, program, Path(folder))
            errors[kind] = max(check.error for check in compare(system, open_graph(kind, Path(folder)), size))
    return {"free": free, **errors}


def graphs(system: System, folder: Path, given: list[Any]) -> Iterator[tuple[str, System, Manifest | None]]:
    """The system in every engine, at a fixed size; the last one in int8."""
    yield "torch", system.fused(), None
    size = system.config.model.size
    for engine, kind, quantity in zip(SUBJECTS[1:], ("onnx", "openvino", "openvino"), ([], [], given), strict=True):
        where = folder / engine.replace(" ", "-")
        manifest = write_graph_folder(system, kind, where, size=size, calibration=quantity)  # type: ignore[arg-type]
        yield engine, load(where, manifest), manifest


@torch.no_grad()
def speed(name: str, run: Path) -> dict[str, Any]:
    """Seconds of a forward by engine and batch, in interleaved rounds; U-DiT-S's int8 ranges are measured on noise."""
    if name == "digits":
        system, given = udit.load(run), calibration_inputs(read_run_config(run))
    else:
        system = perturbed(name)
        noise = inputs(system.config.model, 4, system.config.model.size)
        given = [tuple(part[i : i + 1].numpy() for part in noise) for i in range(4)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        subjects = [(engine, one.backbone) for engine, one, _ in graphs(system, Path(folder), given)]
        for batch in SPEED[name]:
            arguments = inputs(system.config.model, batch, system.config.model.size)
            times: dict[str, list[float]] = {engine: [] for engine, _ in subjects}
            for round_ in range(-2, ROUNDS):
                for engine, network in subjects:
                    began = time.perf_counter()
                    network(*arguments)
                    if round_ >= 0:
                        times[engine].append(time.perf_counter() - began)
            found[str(batch)] = {
                engine: {"median": statistics.median(t), "spread": (max(t) - min(t)) / statistics.median(t)}
                for engine, t in times.items()
            }
    return found


def score(run: Path) -> dict[str, Any]:
    """The judge's scores of images from the same seeds in every engine."""
    values = read_run_config(run)
    config, how = values.evaluation, values.sampling
    source = values.source()
    labels = labels_for(config.num_samples, values.model.num_classes, config.labels, config.first_seed)
    seeds = [config.first_seed + i for i in range(config.num_samples)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        for engine, system, manifest in graphs(udit.load(run), Path(folder), calibration_inputs(values)):
            drawn = torch.cat(list(system.generate(seeds, labels, sampling=how, batch_size=64)))
            reference = drawn if reference is None else reference
            parts, judge = parts_of(source, values.data), Path(folder) / "judge"
            report = score_with_judge(drawn.numpy(), labels, source, parts, config, {}, judge)
            found[engine] = {
                "error": manifest.error if manifest else 0.0,
                "pixels": int((drawn.int() - reference.int()).abs().max()),
                "agreement": report.agreement,
                "agreement_interval": report.agreement_interval,
                "distance": report.distance,
                "distance_interval": report.distance_interval,
            }
    return found


def advice(record: dict[str, Any]) -> Iterator[str]:
    """A summary of the tables, one line per question."""
    rows = {
        f"{name} at batch {batch}": {engine: t["median"] for engine, t in times.items()}
        for name in SPEED
        for batch, times in record.get(f"speed {name}", {}).items()
    }
    for what, seconds in rows.items():
        engine = min(SUBJECTS[:3], key=seconds.__getitem__)
        rest = ", ".join(f"{e} {seconds['torch'] / seconds[e]:.2f}x" for e in SUBJECTS[1:3])
        yield f"- {what}: **{engine}** is fastest in float32; relative to torch with compiled kernels, {rest}."
    gains = [s["openvino"] / s["openvino int8"] for s in rows.values() if "openvino int8" in s]
    if gains and "score" in record:
        plain, small = record["score"]["torch"], record["score"]["openvino int8"]
        verdict = (
            "is worth it" if min(gains) > 1 else "helps only sometimes" if max(gains) > 1 else "is not worth it here"
        )
        yield (
            f"- **int8** {verdict}: {min(gains):.2f}x to {max(gains):.2f}x the speed of OpenVINO's float32; digits' "
            f"class agreement {small['agreement']:.1%} against {plain['agreement']:.1%} and distance "
            f"{small['distance']:.3f} against {plain['distance']:.3f}."
        )


def page(record: dict[str, Any]) -> str:
    """The page: its text, then the tables."""
    if "machine" not in record:
        return f"{TEXT.format(advice='Nothing has been measured yet.')}"
    lines = [TEXT.format(advice="\n".join(["Which engine to take:", "", *advice(record)]))]
    lines += [
        "## Families",
        "",
        "Errors are max|difference| / max|output| over two batch sizes and, where H and W are free, two sizes.",
        "",
    ]
    lines += ["| model | H and W | ONNX, onnxruntime | OpenVINO |", "| --- | --- | ---: | ---: |"]
    for name, one in record.items():
        if name.startswith("family "):
            free = "free" if one["free"] else "fixed"
            lines.append(f"| {name.split()[1]} | {free} | {one['onnx']:.1e} | {one['openvino']:.1e} |")
    lines += [
        "",
        "## Speed",
        "",
        "Milliseconds of a forward, median of interleaved rounds (spread), and speed relative to eager torch.",
        "",
    ]
    lines += ["| model | batch | " + " | ".join(SUBJECTS) + " |", "| --- | ---: |" + " ---: |" * len(SUBJECTS)]
    for name in SPEED:
        for batch, times in record.get(f"speed {name}", {}).items():
            base = times["torch"]["median"]
            cells = [
                f"{1e3 * t['median']:.1f} ({t['spread']:.0%}), {base / t['median']:.2f}x" if t else "not measured"
                for t in map(times.get, SUBJECTS)
            ]
            lines.append(f"| {name} | {batch} | " + " | ".join(cells) + " |")
    lines += ["", "## Score", "", "1,000 digits from the same seeds with each engine, scored by the run's judge.", ""]
    lines += ["| engine | error | largest pixel difference | class agreement (95 %) | Fréchet distance (95 %) |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for engine, one in record.get("score", {}).items():
        (low, high), (near, far) = one["agreement_interval"], one["distance_interval"]
        lines.append(
            f"| {engine} | {one['error']:.1e} | {one['pixels']}/255 | {one['agreement']:.1%} ({low:.1%} to {high:.1%}) "
            f"| {one['distance']:.3f} ({near:.3f} to {far:.3f}) |"
        )
    told = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    return "\n".join([*lines, "", f"Measured by `make bench-export`, recorded in `benchmarks/export.json`: {told}."])


if __name__ == "__main__":
    main()
