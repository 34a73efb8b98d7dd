"""``udit doctor``."""

from __future__ import annotations

from pathlib import Path

from udit.cli.output import say


def doctor(run: Path | None = None) -> int:
    """Find what is wrong or slow on this machine, or what is odd in a run.

    Each line says ok, note, slow or wrong, what was found, and what to do. Exit code 1 if anything is wrong, else 0.

    Parameters
    ----------
    run
        A run folder, also while it trains; the machine if not given.
    """
    from udit.diagnosis.doctor import doctor as diagnose

    wrong = 0
    for finding in diagnose(run):
        say(f"{finding.verdict:<5}  {finding}")
        wrong += finding.verdict == "wrong"
    return int(wrong > 0)
