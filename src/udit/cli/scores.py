"""``udit scores``."""

from __future__ import annotations

from pathlib import Path

from udit.cli.output import say
from udit.errors import UserError


def scores(*files: Path, paired: bool = False) -> int:
    """Show the scores that `udit eval` wrote, side by side.

    Scores of one protocol, and of runs those by one judge, are in one table; others are listed separately, with what
    differs.

    Parameters
    ----------
    files
        JSON files of `udit eval`: RUN/evaluation/metrics*.json or those of --out; of a run's folder, its latest scores.
    paired
        Compare two, A and B, over the same seeds: the difference of each score with its 95 % interval, and whether it
        tells them apart.
    """
    if not files:
        raise UserError("name at least one metrics.json that `udit eval` wrote")

    from udit.evaluation import compare

    if paired:
        if len(files) != 2:
            raise UserError(f"--paired compares two and {len(files)} are given; name A and B")
        say(compare.paired(*files).table())
        return 0
    say(compare.tables([(str(file), compare.read(file)) for file in files]))
    return 0
