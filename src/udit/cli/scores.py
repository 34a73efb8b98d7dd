"""``udit scores``."""

from __future__ import annotations

from pathlib import Path

from udit.cli.output import say
from udit.errors import UserError


def scores(*files: Path) -> int:
    """Show the scores that `udit eval` wrote, side by side; different protocols are listed separately.

    Parameters
    ----------
    files
        metrics.json files of `udit eval` with --features or --reference.
    """
    if not files:
        raise UserError("name at least one metrics.json that `udit eval` wrote")

    from udit.evaluation.standard import Scores, tables

    say(tables([(str(file), Scores.read(file)) for file in files]))
    return 0
