"""Scores and times sampling settings of a flow-matching run of a U-DiT: from 250 ancestral steps to a few cached ones.

python benchmarks/frontier.py RUN [--also RUN ...]            scores what frontier.json lacks; resumes when interrupted
python benchmarks/frontier.py RUN [--also RUN ...] --clock    times everything that is scored once more
python benchmarks/frontier.py --page                          writes docs/sampling.md and its figure from the record

Scores are those of ``udit tune``: all settings use the same seeds. The ancestral steps are DDPM's, with the same
weights: where a variance-preserving x_t has the ratio of noise to signal r, the linear path's x_t at t = r / (1 + r) is
the same image scaled, and the network is given that. For each run named with --also, a 50-step solver is scored without
a cache and with calibrated ones. Seconds are of one processor thread, medians of the rounds; the baseline's are a few
steps of the literal network, multiplied.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from frontier_page import ANCESTRAL, LITERAL, OURS, write_page
from literal import LiteralUDiT
from torch import Tensor

import udit
from udit.assemble import System
from udit.benchmarking.report import machine
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.diffusion.ddpm import DDPM
from udit.diffusion.denoiser import Backbone, Denoiser
from udit.diffusion.guidance import Guided
from udit.diffusion.sample import SeededNoise, sample
from udit.models.published import export_published
from udit.store import read_run_config
from udit.tuning.quality import LOSSES, Scored, fastest
from udit.tuning.search import STEPS, Scorer, candidates

RECORD = Path(__file__).with_suffix(".json")
LOSS = LOSSES["best"]


class OnTheFlowPath:
    """A flow's network for Denoiser(..., DDPM, target="flow", time="sigma")."""

    def __init__(self, network: Backbone, index_scale: float) -> None:
        self.network, self.index_scale = network, index_scale

    def __call__(self, x: Tensor, ratio: Tensor, y: Tensor | None = None) -> Tensor:
        """x = alpha x0 + sigma eps [B, C, H, W] with alpha^2 + sigma^2 = 1, ratio = sigma / alpha [B] -> eps - x0."""
        r = ratio.view(-1, 1, 1, 1)
        return self.network(x * (1 + r**2).sqrt() / (1 + r), ratio / (1 + ratio) * self.index_scale, y)


def ancestral(system: System) -> Guided:
    """The run's denoiser on DDPM's schedule, guided at every step with the run's own guidance."""
    model, how = system.config.model, system.config.sampling
    network = OnTheFlowPath(system.backbone, {"index": 1000.0, "unit": 1.0}[model.time])
    denoiser = Denoiser(
        network, DDPM.linear(), "flow", time="sigma", null_label=model.null_label, num_classes=model.num_classes
    )
    return Guided(denoiser, how.guidance)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a flow-matching run of a U-DiT")
    parser.add_argument("--n", type=int, default=1000, help="images per setting")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="evaluations of few-step solvers, e.g. 5,9")
    parser.add_argument("--batch", type=int, default=16, help="images per round of --clock")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="a further run, to measure step caches on"
    )
    parser.add_argument("--clock", action="store_true", help="time everything that is scored once more")
    parser.add_argument("--page", action="store_true", help="write the page")
    asked = parser.parse_args()
    if asked.page:
        write_page(read())
        return
    if asked.run is None and not asked.also:
        parser.error("name a run, or --page")
    torch.set_num_threads(1)
    few = [int(count) for count in asked.steps.split(",")]
    runs = [("frontier", asked.run, few)] if asked.run is not None else []
    for section, run, steps in [*runs, *((run.name, run, []) for run in asked.also)]:
        if asked.clock:
            clock(section, run, asked.batch)
        else:
            measure(section, run, asked.n, steps)


def read() -> dict[str, Any]:
    """The measurements so far."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def keep(section: str, values: dict[str, Any]) -> None:
    """Stores values in a section of the record."""
    record = read()
    record[section] = record.get(section, {}) | values
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(RECORD)


def scale_of(run: Path, n: int) -> Scorer:
    """The scorer of a run; the judge is stored where ``udit eval`` stores it."""
    return Scorer.of(read_run_config(run), udit.load(run), run / "evaluation" / "judge.safetensors", n)


def named(how: SamplingConfig) -> str:
    """The key of a setting in the record."""
    return json.dumps(how.model_dump(mode="json", exclude_defaults=True))


class Rows:
    """A section of the record with scored settings; what is in it is not measured again."""

    def __init__(self, section: str, scale: Scorer, run: Path) -> None:
        self.section, self.scale = section, scale
        about = {"weights": scale.system.fingerprint, "protocol": scale.protocol()}
        there = read().get(section, {}).get("about", about)
        if not scale.system.has_weights(there["weights"]) or there["protocol"] != about["protocol"]:
            raise SystemExit(f"{RECORD} holds {section} of other weights or another protocol; remove it to start over")
        facts = {
            "model": scale.system.config.model.family,
            "run": run.name,
            "step": scale.system.config.steps,
            "date": str(date.today()),
        }
        keep(section, {"about": about, "facts": facts})

    def get(self, name: str, make: Callable[[], Scored]) -> Scored:
        """The scored setting of a name; measures it if the record lacks it."""
        found = read()[self.section].get("rows", {})
        if name not in found:
            scored = make()
            found[name] = scored.model_dump(mode="json")
            keep(self.section, {"rows": found})
            print(f"{name}: distance {scored.distance:.4f}, agreement {scored.agreement:.3f}", flush=True)
            print(f"  {1e3 * scored.seconds:.1f} ms per image", flush=True)
        return Scored.model_validate(found[name])

    def way(self, how: SamplingConfig) -> Scored:
        """A setting, measured or from the record."""
        return self.get(named(how), lambda: self.scale.measure(how))


class Remembering(Scorer):
    """A scorer that looks into the record first, so that an interrupted calibration resumes."""

    rows: Rows

    def measure(self, how: SamplingConfig) -> Scored:
        """As ``Scorer``."""
        return self.rows.get(named(how), lambda: Scorer.measure(self, how))


def remembering(scale: Scorer, section: str, run: Path) -> Remembering:
    """The scorer with a section of the record."""
    other = Remembering(**vars(scale))
    object.__setattr__(other, "rows", Rows(section, scale, run))
    return other


def fifty(system: System) -> SamplingConfig:
    """Euler's 50 steps, guided at all times."""
    return SamplingConfig(sampler="flow-euler", steps=50, guidance=system.config.sampling.guidance)


def caches(scale: Remembering) -> dict[str, str | None]:
    """A 50-step solver: without a cache, with the deep part cached, and with guidance cached as well."""
    plain = scale.measure(fifty(scale.system))
    deep, both = (scale.cache(plain, LOSS, guidance=guidance) for guidance in (False, True))
    found = {"plain": plain, "deep": deep, "deep and guidance": both}
    return {name: None if scored is None else named(scored.sampling) for name, scored in found.items()}


def measure(section: str, run: Path, n: int, steps: list[int]) -> None:
    """Scores every setting of a run and its caches; without ``steps``, as for further runs, its caches alone."""
    scale = remembering(scale_of(run, n), section, run)
    keep(section, {"caches": caches(scale)})
    if not steps:
        return
    samplers, own = FlowConfig.few_step_samplers, scale.system.config.sampling
    tried = [scale.measure(how) for how in candidates(own, samplers, steps)]
    scale.rows.get(ANCESTRAL, lambda: _ancestral(scale))
    best = min(tried, key=lambda each: each.distance)
    for loss in LOSSES.values():
        if scored := scale.cache(fastest(tried, loss, best), LOSS, guidance=True):
            tried.append(scored)


def reference_of(run: Path) -> tuple[str, Backbone]:
    """The literal network with a run's weights, fused; for a model without three levels, our own network."""
    system = udit.load(run)
    if getattr(system.config.model, "levels", 0) != 3:
        return OURS, system.fused().backbone
    literal = LiteralUDiT(system.config.model)
    literal.load_state_dict(export_published(system.backbone))
    return LITERAL, literal.fold()


def _ancestral(scale: Scorer) -> Scored:
    system, clocked = scale.system, time.process_time()
    shape = (system.config.model.in_channels, *system.config.model.size)
    images, labels = [], torch.tensor(scale.labels)
    for start in range(0, scale.count, scale.batch_size):
        end = min(start + scale.batch_size, scale.count)
        noise = SeededNoise(range(scale.first_seed + start, scale.first_seed + end), shape)
        steps = sample(ancestral(system), noise(0), sampler="ddpm", steps=250, y=labels[start:end], noise=noise)
        for k, step in enumerate(steps, start=1):
            last = step.x
            if k % 25 == 0:
                print(f"  {ANCESTRAL}: images {start} to {end}, step {k}", flush=True)
        images.append(system.codec.decode(last.float()))
    seconds = (time.process_time() - clocked) / scale.count
    return scale.score(
        SamplingConfig(sampler="ddpm", steps=250, guidance=system.config.sampling.guidance),
        torch.cat(images).numpy(),
        seconds,
    )


def clock(section: str, run: Path, batch: int) -> None:
    """Times every setting of a section once more: processor seconds per image.

    Those of the ancestral sampler are 250 times a guided step of the literal network, the mean of two.
    """
    record, system = read()[section], udit.load(run).fused()
    if not system.has_weights(record["about"]["weights"]):
        raise SystemExit(f"{RECORD} holds {section} of other weights than those of {run}")
    about = {"batch": batch, "machine": machine(), "baseline": ""}
    model = system.config.model
    labels = [i % model.num_classes for i in range(batch)]
    work: dict[str, tuple[Callable[[], object], float]] = {}
    for name, row in record["rows"].items():
        how = Scored.model_validate(row).sampling
        work[name] = lambda how=how: list(system.generate(range(batch), labels, sampling=how, batch_size=batch)), 1
    if ANCESTRAL in work:
        about["baseline"], network = reference_of(run)
        given, t = torch.randn(2 * batch, model.in_channels, *model.size), torch.full((2 * batch,), 500.0)
        y = torch.tensor([*labels, *[model.num_classes] * batch])
        work[ANCESTRAL] = lambda: [network(given, t, y) for _ in range(2)], 250 / 2
    found = record.get("clock", {"rounds": {}, **about})
    if any(found[name] != value for name, value in about.items()):
        raise SystemExit(f"{RECORD} holds other rounds of {section}; remove its clock to start over")
    with torch.no_grad():
        for do, _ in list(work.values())[-2:]:  # warms up
            do()
        for name, (do, times) in work.items():
            start = time.process_time()
            do()
            found["rounds"].setdefault(name, []).append((time.process_time() - start) * times / batch)
            print(f"{section}, {name}: {1e3 * found['rounds'][name][-1]:.1f} ms per image", flush=True)
    keep(section, {"clock": found})


if __name__ == "__main__":
    main()
