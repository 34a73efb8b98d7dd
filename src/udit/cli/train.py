"""``udit train``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from udit.cli.output import say
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.rehearsal import Rehearsal
    from udit.run.config import Run
    from udit.training.memory import DryRun


def train(
    recipe: str | None = None,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)],
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    plot: Annotated[bool, Parameter(negative="")] = False,
    progress: bool = True,
) -> int:
    """Train a model; run the same command again to resume.

    Ctrl-C and SIGTERM save a checkpoint and exit. Several processes: torchrun --nproc_per_node=N -m udit train ...

    Parameters
    ----------
    recipe
        A shipped recipe's name or a YAML file.
    overrides
        KEY.PATH=VALUE in place of the recipe's values, e.g. training.lr=1e-3 out=runs/mine data.kind=folder
        data.root=images
    list_
        Show the shipped recipes and exit.
    dry_run
        Print the resolved run as YAML, and below it what the training would cost: weights, MACs, images of each class,
        epochs, time (three steps are taken and timed, unless they are large) and memory. A folder of images may be
        missing.
    plot
        With --dry-run: draw at which times training looks and how it weighs errors there, to NAME-objective.png.
    progress
        Show the progress bar; where standard error is no terminal, a plain line now and then.
    """
    from udit.run.recipes import list_recipes, load_run, to_yaml

    if list_:
        for name, purpose in list_recipes().items():
            say(f"{name:24} {purpose}")
        return 0
    if recipe is None:
        raise UserError("name a recipe, e.g. `udit train digits`; `udit train --list` shows all")
    if plot and not dry_run:
        raise UserError("--plot goes with --dry-run; add it")
    run = load_run(recipe, overrides, absent=dry_run)
    if dry_run:
        from udit.checkpoint import CheckpointStore
        from udit.rehearsal import rehearse
        from udit.run.start import check_beginning
        from udit.training.memory import dry_run as memory_of

        if not CheckpointStore(run.out / "checkpoints").steps():
            check_beginning(run)
        say(to_yaml(run.plain()).rstrip())
        found = memory_of(run)
        for line in (*_costs(run, rehearse(run, found)), *_notes(run, found)):
            say(f"# {line}")
        if plot:
            from udit.training.objective_plot import save_objective

            image = Path(f"{run.name}-objective.png")
            save_objective(run, image)
            say(f"# wrote {image}")
        return 0
    from udit.run.scorable import can_be_judged
    from udit.training.source import verified_source

    source = verified_source(run, progress)  # before torch: a broken image is reported sooner, and in less memory

    from udit.dist import keep_freed_memory
    from udit.training.signals import StopFlag
    from udit.training.trainer import Trainer

    keep_freed_memory()
    trainer = Trainer(run, source=source)
    with StopFlag() as stop:
        outcome = trainer.train(progress=progress, stop=stop)
    trainer.world.close()
    if outcome.signal:
        if trainer.world.is_main:
            saved = ", saved" if outcome.step else ""
            say(f"stopped at step {outcome.step}{saved}; the same command goes on from there")
        return 128 + outcome.signal
    if trainer.world.is_main:
        curve = ", loss.png" if (run.out / "loss.png").is_file() else ""
        done = f"{outcome.step} steps in {run.out} (model/, samples/{curve})"
        if outcome.warning is None:
            judged = can_be_judged(run, trainer.source.labels, trainer.parts)
            say(f"finished: {done}; next: udit {'eval' if judged else 'sample'} {run.out}")
        else:
            say(f"finished, but {outcome.warning}: {done}")
    return 0


SHOWN = 20
"""Classes whose images a dry run counts one by one."""


def _costs(run: Run, found: Rehearsal) -> Iterator[str]:
    """What a dry run prints of model, images and time."""
    counts, training = found.cost, run.training
    yield (
        f"model: {counts.parameters:,} weights ({counts.inference_parameters:,} fused), {counts.macs:,} MACs for one "
        "image forward"
    )
    if (images := found.images) is not None:
        yield (
            f"images: {images.total:,}, of which {images.train:,} to train on, {images.judge:,} for the judge and "
            f"{images.test:,} for tests"
        )
        if 0 < len(images.per_class) <= SHOWN:
            yield "of each class: " + ", ".join(f"{name} {count:,}" for name, count in images.per_class.items())
        elif images.per_class:
            least, most = (f(images.per_class, key=images.per_class.__getitem__) for f in (min, max))
            yield (
                f"of each of {len(images.per_class):,} classes: {images.per_class[least]:,} ({least}) to "
                f"{images.per_class[most]:,} ({most})"
            )
    seen = training.steps * training.batch_size
    yield f"{training.steps:,} steps of {training.batch_size:,} images: {seen:,} images" + (
        f", {found.epochs:,.1f} epochs" if found.epochs is not None else ""
    )
    if found.seconds is None:
        yield f"time: not estimated, {found.why_not}"
    else:
        yield (
            f"time: {found.seconds:.3g} s for a step on {found.where}, so about "
            f"{duration(found.seconds * training.steps)} in all, sample grids and checkpoints aside"
        )


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves a number above 1, e.g. "2.5 hours"."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _notes(run: Run, found: DryRun) -> Iterator[str]:
    """What a dry run prints below the run: missing data, and the memory of a step."""
    if found.missing_data:
        yield f"{found.missing_data}; until then {run.model.num_classes} classes are assumed"
    memory, ranks = found.memory, found.ranks
    where = "a training step" if ranks == 1 else f"a training step on each of {ranks} ranks"
    yield f"memory of {where}, {memory.batch} images per backward pass, estimated from shapes:"
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "averages": memory.averages,
        "activations": memory.activations,
        **({"gathered": memory.gathered} if memory.gathered else {}),
    }
    alone = ranks > 1 and not memory.gathered
    for name, size in parts.items():
        yield f"  {name:<12}{size / 1e6:>12,.1f} MB" + (" (rank 0 alone)" if name == "averages" and alone else "")
    yield (
        f"  {'in all':<12}{memory.total / 1e6:>12,.1f} MB at most: activations are freed as gradients appear, so it is "
        "less than the sum"
    )
    if found.shortage:
        yield f"here {found.shortage}"
    if found.loads_vae:
        yield "  and the VAE, unless its latents are read: udit encode, then latents=FOLDER"
