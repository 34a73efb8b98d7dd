"""What a comparison is: systems, a budget, and a recipe that they share; free of torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from udit.errors import UserError
from udit.run.recipes import read_yaml
from udit.spec.base import Seed, Spec, parse

Yardstick = Literal["macs", "parameters", "seconds"]
"""What is equal: multiply-accumulates of a forward of one sample, parameters of the fused network, or seconds of the
whole training."""
UNITS: dict[Yardstick, str] = {"macs": "MACs per sample", "parameters": "parameters", "seconds": "seconds of training"}
TOLERANCE = 0.02
"""How far from the budget a system may be."""
Share = Annotated[float, Field(gt=0, le=1)]


def _system_from(value: Any) -> Any:
    """A system of its name in the catalogue alone."""
    return {"name": value, "model": {"name": value}} if isinstance(value, str) else value


class System(Spec):
    """One backbone of a comparison, of a size that the budget decides."""

    name: Annotated[str, Field(min_length=1)]
    """As the report calls it."""
    model: dict[str, Any]
    """Keys of a run's ``model`` section: a ``name`` of the catalogue, whose proportions are kept, or a ``family``.
    ``depth`` or ``depths`` given here stay as they are; otherwise depth and width are scaled together."""

    @property
    def fixed_depth(self) -> bool:
        """Whether the number of blocks is given."""
        return bool({"depth", "depths"} & self.model.keys())


AnySystem = Annotated[System, BeforeValidator(_system_from)]


class Comparison(Spec):
    """Systems that are trained and scored under one budget: the file that ``udit compare`` takes."""

    name: Annotated[str, Field(min_length=1)] = "comparison"
    """Title of the report."""
    base: str
    """A recipe's name or file: data, codec, noising process, training, sampling and evaluation of all systems."""
    overrides: tuple[str, ...] = ()
    """``key.path=value`` each, of the recipe, e.g. ``training.steps=600``."""
    systems: Annotated[tuple[AnySystem, ...], Field(min_length=1)]
    """Names of the catalogue, or a ``name`` with the keys of a ``model`` each."""
    budget: Yardstick = "macs"
    """What is equal between systems."""
    amounts: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """The budgets, each a comparison of its own in the report; all train for the same number of steps."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Of weights, order of images, times and noise; each seed is a member of its own of every system."""
    fractions: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.25, 0.5, 1.0)
    """Of the training at which systems are scored; the last is 1."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The training runs at a constant rate. Before each score a branch of it lets the rate fall to 0 over this share of
    its steps; 0 scores the constant rate's own averaged weights."""
    rates: tuple[PositiveFloat, ...] = ()
    """Learning rates among which each system's is chosen by the loss of held-out images; none takes the recipe's."""
    rate_share: Share = 0.125
    """Share of the steps that each rate is tried for, with the first seed."""
    score: Literal["distance", "agreement", "precision", "recall"] = "distance"
    """What the report compares first."""
    reach: float | None = None
    """A value of ``score``: the report says after how many steps each system reaches it."""

    @model_validator(mode="after")
    def _check(self) -> Comparison:
        for key in ("systems", "amounts", "seeds", "fractions", "rates"):
            values = [one.name if isinstance(one, System) else one for one in getattr(self, key)]
            if twice := next((one for one in values if values.count(one) > 1), None):
                raise ValueError(f"{key} has {twice} more than once; give each once")
        if list(self.fractions) != sorted(self.fractions) or self.fractions[-1] != 1:
            raise ValueError(f"fractions are {list(self.fractions)}; they rise and end with 1, e.g. [0.25, 0.5, 1]")
        return self


class Stage(Spec):
    """A part of a training after which it is scored."""

    fraction: Share
    """Of the whole training."""
    branch: PositiveInt
    """Step at which the branch leaves the training at a constant rate."""
    step: PositiveInt
    """Step at which it ends and is scored; ``branch`` itself without a decay."""


def stages(comparison: Comparison, steps: int, warmup: int = 0) -> tuple[Stage, ...]:
    """Where a training of so many steps, with a warm-up of so many, is scored.

    Raises:
        UserError: two of them are the same step, or a branch would begin within the warm-up.
    """
    found: list[Stage] = []
    for fraction in comparison.fractions:
        end = round(fraction * steps)
        branch = end - round(comparison.decay * end)
        if branch < 1 or (found and branch <= found[-1].branch):
            shares = ", ".join(f"{share:g}" for share in comparison.fractions)
            raise UserError(f"training.steps is {steps}, too few for scores at {shares} of it; raise it")
        if branch < warmup:
            raise UserError(
                f"training.lr_warmup is {warmup} and the first score's branch begins at step {branch}; lower "
                "training.lr_warmup, or raise training.steps"
            )
        found.append(Stage(fraction=fraction, branch=branch, step=end))
    return tuple(found)


def read_comparison(path: Path) -> Comparison:
    """The comparison in a YAML file.

    Raises:
        UserError: no such file, or a key or value that it may not have.
    """
    return parse(Comparison, read_yaml(path), where=path)


def plain_name(text: str) -> str:
    """A name as part of a file's: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") or "system"


def short_amount(amount: float) -> str:
    """A budget in short, e.g. 20M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= size:
            return f"{amount / size:.4g}{letter}"
    return f"{amount:.4g}"
