"""``udit bench``."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError

Flag = Parameter(negative="")
Sampler = Literal["ddpm", "ddim", "dpmpp", "unipc"]


def bench(
    *words: str,
    work: tuple[Literal["forward", "train", "image"], ...] = ("forward",),
    baseline: tuple[str, ...] = (),
    batch: Annotated[str, Parameter(help="Batch sizes, e.g. 1,4,16.")] = "1",
    size: Annotated[str, Parameter(help="Sides of the input, e.g. 32,64; the model's own if left out.")] = "",
    compiled: Annotated[bool, Flag] = False,
    recompute: Annotated[bool, Flag] = False,
    sampler: Sampler = "ddim",
    steps: int = 20,
    guidance: float = 1.0,
    rounds: int = 5,
    threads: int | None = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    markdown: Path | None = None,
) -> int:
    """Time networks side by side: forward passes, training steps, whole images.

    Rounds are interleaved; medians are told, as ratios to the first baseline (or model), with peak memory, the share
    of this machine's own matrix-product speed measured in the same rounds, and where the time goes.

    Parameters
    ----------
    words
        Names of the catalogue (`udit models`), and fields of their configs, e.g. width=32 depths=[1,2,2,2,1].
    work
        What is timed; may be given more than once, as --baseline.
    baseline
        FILE.py:Class, built from each model's config with its weights; diffusers:DiTTransformer2DModel or
        diffusers:UNet2DModel, at about each model's MACs; or a name of the catalogue. The first is the reference.
    compiled
        Also times the models with their blocks compiled.
    recompute
        Also times training with cheap activations made again (training.checkpoint_activations=selective).
    sampler
        Of images; with --steps and --guidance.
    rounds
        Timed calls of each.
    threads
        Of torch; its own choice if left out.
    json_file
        Writes all numbers there.
    markdown
        Writes the tables there.
    """
    from udit.config.diffusion import SamplingConfig
    from udit.config.files import parse_overrides
    from udit.config.run import model_from

    models, overrides = ([word for word in words if ("=" in word) is is_override] for is_override in (False, True))
    if not models:
        raise UserError("no model is named; name some, e.g. `udit bench U-DiT-S` (`udit models` lists all)")
    if rounds < 1:
        raise UserError(f"--rounds is {rounds}; at least 1 is needed")
    configs = {name: model_from({"name": name, **parse_overrides(overrides)}) for name in models}
    sampling = SamplingConfig(sampler=sampler, steps=steps, guidance=guidance)
    batches, sizes = _numbers(batch, "--batch"), _numbers(size, "--size") if size else None

    import torch

    from udit.bench import measure, report, subjects
    from udit.dist import keep_freed_memory

    keep_freed_memory()  # as ``udit train`` does, for all alike
    if threads:
        torch.set_num_threads(threads)
    results = []
    for name, config in configs.items():
        rows = [subjects.baseline(word, config) for word in baseline] + [subjects.ours(name, config)]
        rows += [subjects.ours(name, config, compiled=True)] if compiled else []
        lean = [subjects.ours(name, config, recompute=True)] if recompute else []
        extents = [(side, side) for side in sizes] if sizes else [config.size]
        for kind, extent, count in itertools.product(work, extents, batches):
            told = rows + lean if kind == "train" else rows
            for result in measure.compare(told, measure.Work(kind, count, extent, sampling), rounds):
                results.append(result)
                say(f"{result.work}: {result.subject} {result.median * 1e3:.1f} ms")
    found = {"command": shlex.join(["udit", *sys.argv[1:]])} | report.plain(results)
    if json_file:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if markdown:
        markdown.write_text(report.markdown(found), encoding="utf-8")
    say(f"\n{report.markdown(found)}")
    return 0


def _numbers(text: str, option: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdigit() and int(word) for word in words):
        raise UserError(f"{option} is {text!r}; write whole numbers from 1, e.g. 1,4,16")
    return [int(word) for word in words]
