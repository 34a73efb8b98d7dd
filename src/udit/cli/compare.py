"""``udit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from udit.cli.output import say, table
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.comparison.config import Comparison
    from udit.comparison.job import Compared

BUDGETS = ("macs", "parameters", "seconds")


def compare(
    comparison: Path | None = None,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)],
    out: Path,
    jobs: int = 1,
    threads: int = 1,
    base: str | None = None,
    systems: str | None = None,
    macs: str | None = None,
    parameters: str | None = None,
    seconds: str | None = None,
    seeds: str | None = None,
    rates: str | None = None,
    fractions: str | None = None,
    train: bool = True,
) -> int:
    """Compare backbones under one budget: trained and scored alike, with intervals; OUT/report.html.

    Sizes are solved to meet the budget. All members see the same images, times and noise, and are scored by the same
    judge; each system's learning rate comes from one grid. Run again, it goes on where it was stopped; machines that
    share OUT work on it together.

    Parameters
    ----------
    comparison
        A YAML file; without one, --base, --systems and a budget say what is compared.
    overrides
        KEY.PATH=VALUE of the base recipe, e.g. training.steps=600, behind those of the file.
    out
        The comparison's folder: records, models and the report.
    jobs
        Members at a time, each in a process of its own.
    threads
        Of each of them.
    base
        The recipe that all systems share but for the model: a shipped one's name or a YAML file.
    systems
        Names of the catalogue, e.g. U-DiT-S,DiT-S/2; their proportions are kept.
    macs
        Budgets of multiply-accumulates per sample, e.g. 20e6,80e6
    parameters
        Budgets of parameters instead.
    seconds
        Budgets of seconds of the whole training instead, on this machine.
    seeds
        Of the members, e.g. 0,1,2
    rates
        Learning rates to choose from, e.g. 1e-3,2e-3,4e-3; the recipe's alone if none are given.
    fractions
        Of the training at which it is scored, e.g. 0.25,0.5,1
    train
        --no-train writes the report of what is finished.
    """
    given = _given(base, systems, seeds, rates, fractions, macs=macs, parameters=parameters, seconds=seconds)
    asked = _comparison(comparison, given, overrides)

    from udit.comparison.job import compare as run
    from udit.comparison.report import write_report
    from udit.training.signals import StopFlag

    with StopFlag() as stop:
        found = run(asked, out, jobs=jobs, threads=threads, train=train, stop=stop, tell=say)
    say()
    say(standings(found))
    report = write_report(asked, found, out)
    for problem in found.problems:
        say(f"problem: {problem}")
    if found.missing:
        say(f"not finished: {len(found.missing)}, e.g. {found.missing[0]}; the same command goes on")
    say(f"wrote {report}" if report else "no member is finished, so there is no report yet")
    if found.signal:
        return 128 + found.signal
    return 1 if found.problems else 0


def standings(found: Compared) -> str:
    """Who is ahead at each budget, as a table for each."""
    if found.summary is None:
        return ""
    from udit.comparison.words import standings_of

    blocks = []
    for panel in found.summary.panels:
        if panel.score == found.summary.panels[0].score:
            title, header, rows = standings_of(panel, found.summary.budget)
            blocks.append(f"{title}\n{table(header, rows)}\n{panel.verdict}")
    return "\n\n".join(blocks)


def _comparison(path: Path | None, given: dict[str, Any], overrides: tuple[str, ...]) -> Comparison:
    """The comparison of a file, with what the command line says in place of its values."""
    from udit.comparison.config import Comparison, read_comparison
    from udit.spec.base import parse

    if path is not None:
        if "=" in str(path) and not path.exists():
            raise UserError(f"{str(path)!r} is no file; a comparison's YAML file comes first, then KEY.PATH=VALUE")
        found = read_comparison(path)
        return found.replace(**given, overrides=(*found.overrides, *overrides))
    for key in ("base", "systems", "amounts"):
        if key not in given:
            words = {"amounts": "a budget, e.g. --macs 20e6", "base": "--base RECIPE", "systems": "--systems A,B"}
            raise UserError(f"{words[key]} is missing; give it, or a YAML file that describes the comparison")
    return parse(Comparison, given | {"overrides": overrides})


def _given(
    base: str | None,
    systems: str | None,
    seeds: str | None,
    rates: str | None,
    fractions: str | None,
    **budgets: str | None,
) -> dict[str, Any]:
    """What the command line says of a comparison, as the keys of its file."""
    values: dict[str, Any] = {} if base is None else {"base": base}
    if systems is not None:
        values["systems"] = tuple(word.strip() for word in systems.split(","))
    named = [(name, text) for name, text in budgets.items() if text is not None]
    if len(named) > 1:
        raise UserError(f"--{named[0][0]} and --{named[1][0]} are given; what is equal is one of them")
    for name, text in named:
        values |= {"budget": name, "amounts": _numbers(f"--{name}", text)}
    if seeds is not None:
        values["seeds"] = _numbers("--seeds", seeds)
    if rates is not None:
        values["rates"] = _numbers("--rates", rates)
    if fractions is not None:
        values["fractions"] = _numbers("--fractions", fractions)
    return values


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"{option} is {text!r}; it takes numbers with commas between, e.g. 1,2,3") from None
