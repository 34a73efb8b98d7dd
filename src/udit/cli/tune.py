"""``udit tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from udit.cli.output import say, table
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.tuning.quality import Scored


def tune(run: Path, /, *, n: int = 500, device: str = "auto") -> int:
    """Find what `udit sample --quality draft|good|best` draws with: RUN/quality.json.

    Few-step solvers at several numbers of steps, guided at all times and within an interval, are scored on the same
    seeds by the run's own judge (see `udit eval`) and timed; then steps of the best are cached as far as 2 % of the
    score allow. best is the quickest way within 2 % of the best score, good within 10 %, draft within 50 %.

    Parameters
    ----------
    run
        A run folder of `udit train`.
    n
        Pictures of each way; fewer are quicker and tell less.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    if n < 20:
        raise UserError(f"--n is {n}; a score needs at least 20 pictures")
    from udit.store import load, read_run_config
    from udit.tuning.quality import FILE, Level, Quality

    values = read_run_config(run)

    from udit import dist
    from udit.tuning.search import Scale
    from udit.tuning.search import tune as search

    world = dist.start(device)
    if world.size > 1:
        raise UserError("udit tune runs as one process; start it without torchrun")
    system = load(run).to(world.device)
    scale = Scale.of(values, system, run / "evaluation" / "judge.safetensors", n)
    found: Quality = search(scale, system.config.steps, tell=lambda scored: say(in_short(scored)))
    found.write(run / FILE)
    rows = [(level, *_cells(getattr(found, level))) for level in get_args(Level)]
    say()
    say(table(("quality", "sampler", "guided", "deep part runs", "distance", "agreement", "ms a picture"), rows))
    say(f"\nwrote {run / FILE}; distances are of the run's own judge, not the FID of the literature")
    world.close()
    return 0


def in_short(scored: Scored) -> str:
    """One line."""
    sampler, guided, refreshed, distance, agreement, seconds = _cells(scored)
    return (
        f"{sampler:13} guided {guided:9} deep {refreshed:8} distance {distance} agreement {agreement} {seconds:>7} ms"
    )


def _cells(scored: Scored) -> tuple[str, ...]:
    how = scored.sampling
    low, high = how.guidance_interval
    return (
        f"{how.sampler} {how.steps}",
        "never" if how.guidance == 1 else "always" if (low, high) == (0, 1) else f"{low:g} to {high:g}",
        f"{len(how.refresh)} times" if how.refresh else "always",
        f"{scored.distance:.4f}",
        f"{100 * scored.agreement:.1f} %",
        f"{1e3 * scored.seconds:.1f}",
    )
