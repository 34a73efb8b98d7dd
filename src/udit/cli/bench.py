"""``udit bench``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from udit.cli.output import say
from udit.diffusion.config import DDPMConfig, SamplingConfig, check_sampler
from udit.diffusion.samplers import listed
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.models.config import ModelConfig
    from udit.run.config import Run

Flag = Parameter(negative="")
SAMPLER_HELP = f"Of images: {listed(DDPMConfig.samplers())}; with --steps and --guidance."


def bench(
    *words: str,
    work: tuple[Literal["forward", "train", "image"], ...] = ("forward",),
    baseline: tuple[str, ...] = (),
    batch: Annotated[str, Parameter(help="Batch sizes, e.g. 1,4,16.")] = "1",
    size: Annotated[str, Parameter(help="Sides of the input, e.g. 32,64; the model's own if left out.")] = "",
    compiled: Annotated[bool, Flag] = False,
    recompute: Annotated[bool, Flag] = False,
    apart: Annotated[bool, Flag] = False,
    sampler: Annotated[str, Parameter(help=SAMPLER_HELP)] = DDPMConfig.samplers()[0],
    steps: int = 20,
    guidance: float = 1.0,
    rounds: int = 5,
    data: str | None = None,
    workers: Annotated[str, Parameter(help="Numbers of reading processes, e.g. 0,2; with --data.")] = "0",
    threads: int | None = None,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    markdown: Path | None = None,
) -> int:
    """Time networks side by side: forward passes, training steps, sampling of images.

    Rounds are interleaved. The tables show medians, their ratios to the first baseline (or model), peak memory, the
    share of this machine's own matrix-product speed measured in the same rounds, and where the time goes.

    Parameters
    ----------
    words
        Names of the catalogue (`udit models`), and fields of their configs, e.g. width=32 depths=[1,2,2,2,1]; with
        --data also the recipe's keys of data and codec, e.g. data.root=PATH.
    work
        What is timed; may be given more than once, like --baseline.
    baseline
        FILE.py:Class, built from each model's config with its weights; diffusers:DiTTransformer2DModel,
        diffusers:UNet2DModel, diffusers:UVit2DModel or equal:DiT (ours), of about each model's MACs at its own
        input_size; or a name of the catalogue. The first is the reference.
    compiled
        Also times the models with their blocks compiled.
    recompute
        Also times training with recomputed activations (training.checkpoint_activations=selective).
    apart
        Keeps one network in memory at a time and builds each again in every round, for networks that are too large
        together.
    rounds
        Timed calls of each.
    data
        A recipe's name or YAML file, as of `udit train`: training steps read its images as a training would, and the
        share of the time spent waiting for them is shown.
    threads
        Of torch; its default if left out.
    device
        cpu, cuda, cuda:N, or auto. A GPU's own events time it and its allocator counts memory; the tables then have
        launches of kernels, and the share of the time in which none ran.
    precision
        What networks compute in, by autocast as in training.
    json_file
        Writes all numbers there, after each row.
    markdown
        Writes the tables there, after each row.
    """
    from udit.benchmarking.runs import runs_on_data
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
    sampling = parse(SamplingConfig, {"sampler": sampler, "steps": steps, "guidance": guidance})
    check_sampler(sampler, DDPMConfig, steps)
    batches, sizes = _numbers(batch, "--batch"), _numbers(size, "--size") if size else []
    of_data = [word for word in overrides if word.partition("=")[0].partition(".")[0] in ("data", "codec", "latents")]
    fields = parse_overrides([word for word in overrides if word not in of_data])
    runs: dict[str, list[Run]] = {}
    if data is not None:
        if "train" not in work or sizes:
            raise UserError("--data is for training steps, at its images' size; add --work train, leave --size out")
        runs = runs_on_data(data, of_data, models, fields, batches, _numbers(workers, "--workers", least=0))
    elif of_data or workers != "0":
        raise UserError(f"{(*of_data, '--workers')[0]} is about data, and there is none; name a recipe: --data")
    if apart and runs:
        raise UserError("--apart is for random inputs; leave it out, or --data")
    configs = {name: runs[name][0].model if runs else model_from({"name": name, **fields}) for name in models}
    for name, config in configs.items():
        _check_sizes(config, sizes)
        if "image" in work and guidance != 1 and config.null_label is None:
            raise UserError(f"--guidance is {guidance:g} and {name} has no null label to compare with; leave it out")

    from udit.benchmarking import report
    from udit.benchmarking.job import bench as measure
    from udit.dist import find_device

    rows = measure(
        configs,
        work=work,
        baselines=baseline,
        batch_sizes=batches,
        sizes=sizes,
        compiled=compiled,
        recompute=recompute,
        one_at_a_time=apart,
        sampling=sampling,
        rounds=rounds,
        runs=runs,
        threads=threads,
        device=device,
        precision=precision,
    )
    command = shlex.join(["udit", *sys.argv[1:]])
    record = report.Record(command, json_file, markdown, find_device(device, 0), precision)
    for row in rows:
        record.add(row)  # written at once: the next one may be killed for its memory
        say(f"{row.work}: {row.subject} {row.median * 1e3:.1f} ms")
    say(f"\n{record.markdown()}")
    return 0


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
