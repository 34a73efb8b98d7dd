"""Which learning rate fits: short trainings at several rates, compared by the loss of held-out images."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from udit.errors import RunError, UserError
from udit.record import Record
from udit.run.config import Run
from udit.training.signals import StopFlag
from udit.training.trainer import train

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Rates that are tried by default, as multiples of the run's."""
SHARE = 10
"""The trainings have a tenth of the run's steps, at least ``LEAST`` and at most ``MOST``."""
LEAST, MOST = 100, 500
FILE = "rates.json"


class Tried(Record):
    """A short training at one rate."""

    lr: float
    loss: float | None
    """Of held-out images with the averaged weights; None where the training failed."""
    trouble: str | None = None
    """Why it failed, or what its log warns of."""


class Rates(Record):
    """Rates and their losses, from the lowest to the highest."""

    steps: int
    """Of each training."""
    model: str
    """The model's family."""
    width: int | None
    """The model's width, where it has one; None elsewhere."""
    optimizer: str
    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried | None:
        """The one of the lowest loss among those without trouble; None without any."""
        sound = [one for one in self.tried if one.loss is not None and one.trouble is None]
        return min(sound, key=lambda one: one.loss or 0.0) if sound else None

    @property
    def edge(self) -> bool:
        """Whether the best is the lowest or the highest that was tried, so that a better one may lie beyond."""
        return self.best is not None and self.best in (self.tried[0], self.tried[-1])


def find_lr(
    run: Run,
    rates: Sequence[float] | None = None,
    *,
    steps: int | None = None,
    narrow: int = 1,
    out: Path | str | None = None,
    progress: bool = True,
    stop: StopFlag | None = None,
    on_tried: Callable[[Tried], object] = lambda tried: None,
) -> Rates | None:
    """Trains a run for a few steps at several learning rates and compares the losses of held-out images.

    All of them start with the same weights and see the same images, times and noise. A short training favours higher
    rates than a long one, and a narrow model higher rates than a wide one: of two rates of nearly equal loss the lower
    is the safer.

    Args:
        run: what is to be trained; its schedule and warm-up are shortened with its steps.
        rates: learning rates; by default ``FACTORS`` times the run's.
        steps: of each training; by default a tenth of the run's, 100 to 500.
        narrow: divides the model's width and heads, which makes the trainings faster.
        out: a folder for the trainings, each a run folder; ``OUT-rates`` by default. Those that are finished there are
            not trained again.
        progress: shows a bar for each.
        stop: looked at between steps.
        on_tried: called with each as it is done.

    Returns:
        All of them, also written to ``rates.json`` in ``out``; None if ``stop`` asked to end early.

    Raises:
        UserError: a rate is not positive, the data have no held-out part, or the model cannot be narrowed.
    """
    rates = sorted({run.training.lr * factor for factor in FACTORS} if rates is None else set(rates))
    for rate in rates:
        if not (math.isfinite(rate) and rate > 0):
            raise UserError(f"a learning rate is {rate:g}; it is above 0, e.g. 1e-3")
    if run.data.test_share == 0 and not run.latents:
        raise UserError("data.test_share is 0, so that no image is held out to compare rates by; set it to 0.1")
    short = shortened(run, steps, narrow)
    folder = Path(out) if out is not None else run.out.with_name(f"{run.out.name}-rates")
    tried = []
    for rate in rates:
        member = _at(short, rate, folder)
        one = _tried(member, rate, progress, stop)
        if one is None:
            return None
        on_tried(one)
        tried.append(one)
    width = getattr(run.model, "width", None)
    found = Rates(
        steps=short.training.steps,
        model=run.model.family,
        width=width // narrow if isinstance(width, int) else None,
        optimizer=run.training.optimizer.kind,
        tried=tuple(tried),
    )
    found.write(folder / FILE)
    return found


def shortened(run: Run, steps: int | None = None, narrow: int = 1) -> Run:
    """The run with fewer steps, a warm-up of the same share, and a model of a fraction of its width.

    Raises:
        UserError: a number is below 1, or the model's width or number of heads cannot be divided so.
    """
    for name, value in (("steps", steps), ("narrow", narrow)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it is 1 or more")
    training = run.training
    count = steps or max(LEAST, min(MOST, training.steps // SHARE))
    warmup = round(training.lr_warmup * min(1.0, count / training.steps))
    changes = {"steps": count, "lr_warmup": warmup, "sample_every": count, "save_every": max(1, count // 2)}
    model = run.model
    if narrow != 1:
        parts = {key: getattr(model, key, None) for key in ("width", "heads")}
        if not all(isinstance(part, int) and part % narrow == 0 for part in parts.values()):
            raise UserError(
                f"--narrow is {narrow} and the model has width {parts['width']} and {parts['heads']} heads; it divides "
                "both, or leave it out"
            )
        model = model.replace(**{key: part // narrow for key, part in parts.items() if isinstance(part, int)})
    return run.replace(model=model, training=training.replace(**changes, posthoc_ema=None))


def _at(run: Run, rate: float, folder: Path) -> Run:
    return run.replace(training=run.training.replace(lr=rate), out=folder / f"lr-{rate:g}")


def _tried(run: Run, rate: float, progress: bool, stop: StopFlag | None) -> Tried | None:
    """Trains at one rate, or reads what an earlier call has trained; None if it was stopped."""
    try:
        with _quiet("udit.training"):  # each would tell of the others beside it
            outcome = train(run, progress=progress, stop=stop)
    except RunError as error:
        return Tried(lr=rate, loss=None, trouble=_short(str(error)))
    if not outcome.finished:
        return None
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["val_loss"] for line in lines if line.get("val_loss") is not None]
    if not losses:
        raise UserError(f"{run.out} has no loss of held-out images; raise data.test_share")
    return Tried(lr=rate, loss=losses[-1], trouble=outcome.warning and _short(outcome.warning))


def _short(text: str) -> str:
    """A message without its details and remedies, which are another training's."""
    return text.split(";", 1)[0].split(":", 1)[0]


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
