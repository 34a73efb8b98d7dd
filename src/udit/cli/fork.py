"""``udit fork``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from udit.cli.output import say


def fork(
    run: Path,
    out: Path,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=False)],
    checkpoint: int | None = None,
) -> int:
    """Go on from a run's checkpoint in another folder, with some keys changed; the run itself is left as it is.

    Weights, optimiser and averages are the checkpoint's. Without a changed key the fork ends with the run's own bits.

    Parameters
    ----------
    run
        A run folder.
    out
        The new run folder.
    overrides
        KEY.PATH=VALUE, e.g. training.lr=1e-4 training.steps=50000. Model, optimiser and data stay what they are.
    checkpoint
        The step of a checkpoint, e.g. 500; the newest if not given.
    """
    from udit.training.fork import fork as fork_run

    made = fork_run(run, out, overrides, checkpoint=checkpoint)
    changed = f", with another {', '.join(made.changed)}" if made.changed else ""
    say(f"forked {run} at step {made.step:,}{changed}; next: udit train {shlex.quote(str(made.out / 'run.yaml'))}")
    return 0
