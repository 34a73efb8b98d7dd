"""What a training says of itself when it begins."""

from __future__ import annotations

import contextlib
import difflib

from udit.checkpoint import CheckpointStore
from udit.data.sources import Source
from udit.run.config import Run
from udit.run.recipes import to_yaml
from udit.training.learner import Learner


def describe_training(learner: Learner, source: Source, images: int) -> str:
    """One line: what is trained on what, where, for how many steps, and where its log is.

    Args:
        learner: of the run.
        source: of the images.
        images: how many of them are trained on.
    """
    run, world = learner.run, learner.world
    config = run.training
    weights = sum(p.numel() for p in learner.plain().parameters())
    name = getattr(run.model, "family", type(run.model).__name__)
    plain = run.data.model_dump(mode="json")
    data = (
        f"latents of {run.latents}"
        if run.latents
        else next(str(v) for v in map(plain.get, ("root", "path", "kind")) if v)
    )
    choice = config.optimizer.kind
    by = "" if choice == "adamw" else f" by {choice}"
    adapted = "" if learner.adapter is None else f" by {learner.adapter.told()},"
    if len(learner.optimizer.parts) > 1:
        by = f" by {learner.optimizer.told()}"
    shape = "x".join(map(str, run.model.input_shape()))
    return (
        f"training {name}, {weights / 1e6:,.2f} million weights,{adapted} on {images:,} of {len(source):,} images of "
        f"{data} ({shape}), {config.steps:,} steps of {config.batch_size:,} images{by}, in {config.precision} on "
        f"{world.where}; log: {run.out / 'metrics.jsonl'}"
    )


def run_beside(run: Run) -> str:
    """The end of a line on a new run: a folder beside it that holds a run of the same data and model, if any.

    A slip in ``out`` begins a new run where an old one was meant. Of several runs it is that of the nearest name.
    """
    plain = run.plain()
    parts = [to_yaml({key: plain[key]}) for key in ("data", "model")]
    found = {}
    with contextlib.suppress(OSError):
        for path in run.out.absolute().parent.iterdir():
            with contextlib.suppress(OSError, UnicodeDecodeError):
                text = "\n" + (path / "run.yaml").read_text(encoding="utf-8")
                steps = CheckpointStore(path / "checkpoints").steps()
                if steps and path.name != run.out.name and all(f"\n{part}" in text for part in parts):
                    found[path.name] = max(steps)
    if not found:
        return ""
    name = max(found, key=lambda name: difflib.SequenceMatcher(None, run.out.name, name).ratio())
    more = f" ({len(found) - 1} more do)" if len(found) > 1 else ""
    there, step = run.out.with_name(name), found[name]
    return f"; {there} holds a run of the same data and model at step {step:,}{more}; if that was meant, out={there}"
