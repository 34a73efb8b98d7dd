"""``udit bench``."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.models.config import ModelConfig
    from udit.run.config import Run

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
    apart: Annotated[bool, Flag] = False,
    sampler: Sampler = "ddim",
    steps: int = 20,
    guidance: float = 1.0,
    rounds: int = 5,
    data: str | None = None,
    workers: Annotated[str, Parameter(help="Numbers of reading processes, e.g. 0,2; with --data.")] = "0",
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
        Names of the catalogue (`udit models`), and fields of their configs, e.g. width=32 depths=[1,2,2,2,1]; with
        --data also the recipe's keys of data and codec, e.g. data.root=PATH.
    work
        What is timed; may be given more than once, as --baseline.
    baseline
        FILE.py:Class, built from each model's config with its weights; diffusers:DiTTransformer2DModel,
        diffusers:UNet2DModel, diffusers:UVit2DModel or equal:DiT (ours), of about each model's MACs at its own
        input_size; or a name of the catalogue. The first is the reference.
    compiled
        Also times the models with their blocks compiled.
    recompute
        Also times training with cheap activations made again (training.checkpoint_activations=selective).
    apart
        Keeps one network in memory at a time and builds each anew in every round: for those too large together.
    sampler
        Of images; with --steps and --guidance.
    rounds
        Timed calls of each.
    data
        A recipe's name or YAML file, as of `udit train`: training steps get its pictures as a trainer would, and the
        share of the time that they waited for them is told.
    threads
        Of torch; its own choice if left out.
    json_file
        Writes all numbers there, after each row.
    markdown
        Writes the tables there, after each row.
    """
    from udit.diffusion.config import SamplingConfig
    from udit.run.config import model_from
    from udit.run.recipes import parse_overrides
    from udit.spec.base import parse

    models, overrides = ([word for word in words if ("=" in word) is is_override] for is_override in (False, True))
    if not models:
        raise UserError("no model is named; name some, e.g. `udit bench U-DiT-S` (`udit models` lists all)")
    for option, value in (("--rounds", rounds), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{option} is {value}; at least 1 is needed")
    for path in (json_file, markdown):
        if path and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
            raise UserError(f"{path} cannot be written; name a file in a folder that is there and may be written to")
    sampling = parse(SamplingConfig, {"sampler": sampler, "steps": steps, "guidance": guidance}, where="images")
    batches, sizes = _numbers(batch, "--batch"), _numbers(size, "--size") if size else []
    of_pictures = [
        word for word in overrides if word.partition("=")[0].partition(".")[0] in ("data", "codec", "latents")
    ]
    fields = parse_overrides([word for word in overrides if word not in of_pictures])
    runs: dict[str, list[Run]] = {}
    if data is not None:
        if "train" not in work or sizes:
            raise UserError("--data is for training steps, of its pictures' size; add --work train, leave --size out")
        runs = _runs(data, of_pictures, models, fields, batches, _numbers(workers, "--workers", least=0))
    elif of_pictures or workers != "0":
        raise UserError(
            f"{(*of_pictures, '--workers')[0]} is about pictures, and there are none; name a recipe: --data"
        )
    if apart and runs:
        raise UserError("--apart is for made-up pictures; leave it out, or --data")
    configs = {name: runs[name][0].model if runs else model_from({"name": name, **fields}) for name in models}
    for name, config in configs.items():
        _check_sizes(config, sizes)
        if "image" in work and guidance != 1 and config.null_label is None:
            raise UserError(f"--guidance is {guidance:g} and {name} has no null label to compare with; leave it out")

    import torch

    from udit.benchmarking import feed, measure, report, subjects
    from udit.dist import keep_freed_memory
    from udit.training.folder import replace_text

    keep_freed_memory()  # as ``udit train`` does, for all alike
    if threads:
        torch.set_num_threads(threads)
    everyone = {name: [subjects.baseline(word, config) for word in baseline] for name, config in configs.items()}
    results: list[measure.Result] = []

    def found() -> dict[str, Any]:
        return {"command": shlex.join(["udit", *sys.argv[1:]])} | report.plain(results)

    def keep(result: measure.Result) -> None:  # written at once: the next one may be killed for its memory
        results.append(result)
        say(f"{result.work}: {result.subject} {result.median * 1e3:.1f} ms")
        if json_file:
            replace_text(json_file, json.dumps(found(), indent=1) + "\n")
        if markdown:
            replace_text(markdown, report.markdown(found()))

    for name, config in configs.items():
        rows = [*everyone[name], subjects.ours(name, config)]
        rows += [subjects.ours(name, config, compiled=True)] if compiled else []
        lean = [subjects.ours(name, config, recompute=True)] if recompute else []
        for kind in work:
            told = rows + lean if kind == "train" else rows
            if kind == "train" and runs:
                for run, subject in itertools.product(runs[name], told):
                    keep(feed.fed(subject, run, rounds))
                continue
            extents = [(side, side) for side in sizes] or [config.size]
            for extent, count in itertools.product(extents, batches):
                for result in measure.compare(told, measure.Work(kind, count, extent, sampling), rounds, apart=apart):
                    keep(result)
    say(f"\n{report.markdown(found())}")
    return 0


def _runs(
    recipe: str,
    of_pictures: list[str],
    models: list[str],
    fields: dict[str, Any],
    batches: list[int],
    workers: list[int],
) -> dict[str, list[Run]]:
    """{model: a run on the recipe's pictures for each size of a batch and number of reading processes}."""
    from udit.run.config import resolve
    from udit.run.recipes import load_run

    given = load_run(recipe, of_pictures)
    values = {"name": given.name, "data": given.data, "codec": given.codec, "latents": given.latents}
    return {
        name: [
            resolve(
                values | {"model": {"name": name, **fields}, "training": {"batch_size": count, "workers": processes}}
            )
            for count, processes in itertools.product(batches, workers)
        ]
        for name in models
    }


def _check_sizes(config: ModelConfig, sizes: list[int]) -> None:
    for side in sizes:
        try:
            config.check_size(side, side)
        except ValueError as error:
            raise UserError(f"--size {side}: {error}") from None


def _numbers(text: str, option: str, least: int = 1) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words):
        raise UserError(f"{option} is {text!r}; write whole numbers from {least}, e.g. {least},4,16")
    return [int(word) for word in words]
