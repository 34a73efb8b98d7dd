"""``udit find-lr``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from udit.cli.output import say, table
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.tuning.rates import Tried


def find_lr(
    recipe: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)],
    rates: str | None = None,
    steps: int | None = None,
    narrow: int = 1,
    out: Path | None = None,
    progress: bool = True,
) -> int:
    """Find the learning rate for a recipe: short trainings, compared by the loss of held-out images.

    All start with the same weights and see the same images and noise. Run again, it goes on where it was stopped. A
    short training favours higher rates than a long one: of two nearly equal ones take the lower.

    Parameters
    ----------
    recipe
        A shipped recipe's name or a YAML file.
    overrides
        KEY.PATH=VALUE in place of the recipe's values, e.g. training.optimizer=muon
    rates
        Learning rates, e.g. 3e-4,1e-3,3e-3; by default a tenth to ten times the recipe's.
    steps
        Steps of each training; by default a tenth of the recipe's, 100 to 500.
    narrow
        Divide the model's width and heads by this, which is faster; a narrow model takes higher rates than a wide one.
    out
        A folder for the trainings; the recipe's out with -rates at its end by default.
    progress
        Show progress bars.
    """
    from udit.run.recipes import load_run

    chosen = None if rates is None else [_rate(word) for word in rates.split(",")]
    run = load_run(recipe, overrides)

    from udit.dist import keep_freed_memory
    from udit.training.signals import StopFlag
    from udit.tuning.rates import FILE
    from udit.tuning.rates import find_lr as find

    keep_freed_memory()
    folder = out or run.out.with_name(f"{run.out.name}-rates")
    with StopFlag() as stop:
        found = find(
            run,
            chosen,
            steps=steps,
            narrow=narrow,
            out=folder,
            progress=progress,
            stop=stop,
            on_tried=lambda one: say(in_short(one)),
        )
    if found is None:
        say(f"stopped, saved in {folder}; the same command goes on from there")
        return 128 + stop.signal
    rows = [(f"{one.lr:g}", _loss(one), one.trouble or ("best" if one is found.best else "")) for one in found.tried]
    say()
    say(table(("learning rate", "held-out loss", ""), rows))
    say(f"\nwrote {folder / FILE}: {found.steps} steps each, samples and curves beside it")
    if found.best is None:
        say("none of these rates trains; try lower ones with --rates")
        return 1
    beyond = "" if not found.edge else ", the last one tried on that side: a better one may lie beyond (--rates)"
    say(f"set training.lr={found.best.lr:g}{beyond}")
    return 0


def in_short(one: Tried) -> str:
    """A rate that was tried in one line."""
    return f"lr {one.lr:g}: {_loss(one)}" + (f" ({one.trouble})" if one.trouble else "")


def _loss(one: Tried) -> str:
    return "failed" if one.loss is None else f"{one.loss:.4f}"


def _rate(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UserError(f"--rates has {word.strip()!r}; it takes numbers, e.g. 3e-4,1e-3,3e-3") from None
