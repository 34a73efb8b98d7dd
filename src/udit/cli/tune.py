"""``udit tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from udit.cli.output import say, table
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.tuning.quality import Scored


def tune(run: Path, /, *, n: int = 500, device: str = "auto") -> int:
    """Find the settings of `udit sample --quality draft|good|best`: RUN/quality.json.

    Few-step solvers at several numbers of steps, with guidance at all times and within an interval, are scored on the
    same seeds by the run's own judge (see `udit eval`) and timed; then steps of the best are cached as far as 2 % of
    the score allow. best is the fastest setting within 2 % of the best score, good within 10 %, draft within 50 %.

    Parameters
    ----------
    run
        A run folder of `udit train`.
    n
        Images per setting; fewer are faster and less precise.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    if n < 20:
        raise UserError(f"--n is {n}; a score needs at least 20 images")

    from udit.tuning.quality import FILE, Level
    from udit.tuning.search import tune as search

    found = search(run, num_samples=n, device=device, on_scored=lambda scored: say(in_short(scored)))
    rows = [(level, *_cells(getattr(found, level))) for level in get_args(Level)]
    say()
    say(table(("quality", "sampler", "guided", "deep part runs", "distance", "agreement", "ms per image"), rows))
    judge = found.protocol["judge"]
    say(f"\nwrote {run / FILE}; distances are of the run's own judge, {judge}, not the FID of the literature")
    if found.warning:
        say(f"these were chosen by a {found.warning}")
    return 0


def in_short(scored: Scored) -> str:
    """A scored setting in one line."""
    sampler, guided, refreshed, distance, agreement, seconds = _cells(scored)
    return (
        f"{sampler:13} guided {guided:9} deep {refreshed:8} distance {distance} agreement {agreement} {seconds:>7} ms"
    )


def _cells(scored: Scored) -> tuple[str, ...]:
    sampling = scored.sampling
    low, high = sampling.guidance_interval
    return (
        f"{sampling.sampler} {sampling.steps}",
        "never" if sampling.guidance == 1 else "always" if (low, high) == (0, 1) else f"{low:g} to {high:g}",
        f"{len(sampling.refresh)} times" if sampling.refresh else "always",
        f"{scored.distance:.4f}",
        f"{100 * scored.agreement:.1f} %",
        f"{1e3 * scored.seconds:.1f}",
    )
