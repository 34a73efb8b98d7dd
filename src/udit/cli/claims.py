"""``udit claims``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from udit.cli.output import say, table
from udit.errors import UserError


def claims(
    name: str | None = None,
    /,
    *,
    out: Path = Path("docs"),
    page: Annotated[bool, Parameter(negative="")] = False,
    jobs: int = 1,
) -> int:
    """List claims of the literature with what was measured here, or measure one anew.

    Without a name the claims are listed with their verdicts. With one, what it is judged by is measured (minutes; of
    trained comparisons hours, which go on where they were stopped), and OUT/claims.md is written.

    Parameters
    ----------
    name
        Of a claim.
    out
        Holds results/claims, results/comparisons, claims.md and images: docs of this repository.
    page
        Write OUT/claims.md from the records.
    jobs
        Of a comparison: members that are trained at a time.
    """
    from udit.claims.table import find

    if jobs < 1:
        raise UserError(f"--jobs is {jobs}; it is 1 or more")
    claim = None if name is None else find(name)

    from udit.claims.job import Results, measure
    from udit.training.signals import StopFlag

    results = out / "results"
    if claim is None:
        found = Results(results)
        rows = found.rows()
        say(table(("claim", "verdict", "said"), [(row.claim.name, row.judged.verdict, row.claim.said) for row in rows]))
        if page:
            say(f"\nwrote {_written(found, out)}")
        return 0
    if claim.kind == "comparisons":
        with StopFlag() as stop:
            found = measure(claim, results, jobs=jobs, stop=stop, tell=say)
    else:
        stop = None
        found = measure(claim, results, tell=say)
    row = found.row(claim)
    say(f"\n{claim.said} ({claim.where})\n{row.judged.verdict}" + (row.judged.measured and f": {row.judged.measured}"))
    say(f"wrote {_written(found, out)}")
    return 128 + stop.signal if stop is not None and stop.signal else 0


def _written(results: object, out: Path) -> Path:
    from udit.claims.job import Results
    from udit.claims.page import write_page

    assert isinstance(results, Results)
    return write_page(results, out)
