"""``udit scores``."""

from __future__ import annotations

from pathlib import Path

from udit.cli.output import say
from udit.errors import UserError


def scores(*files: Path) -> int:
    """Show the scores that `udit eval` wrote, side by side.

    Scores of one protocol, and of runs those by one judge, are in one table; others are listed separately, with what
    differs.

    Parameters
    ----------
    files
        JSON files of `udit eval`: RUN/evaluation/metrics*.json or those of --out; of a run's folder, its latest scores.
    """
    if not files:
        raise UserError("name at least one metrics.json that `udit eval` wrote")

    from udit.evaluation.compare import read, tables

    say(tables([(str(file), read(file)) for file in files]))
    return 0
