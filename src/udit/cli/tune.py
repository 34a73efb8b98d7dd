"""``udit tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from udit.cli.output import say, table
from udit.errors import UserError

if TYPE_CHECKING:
    from udit.tuning.quality import Scored


def tune(run: Path, /, *, n: int = 500, budget: int | None = None, device: str = "auto") -> int:
    """Find the settings of `--quality draft|good|best` of `udit sample` and `udit eval`: RUN/quality.json.

    One sweep, on the same seeds, by the run's own judge (see `udit eval`): averages of the weights of other lengths (of
    a run with training.posthoc_ema) and scales of guidance, at all times and within an interval, each of which replaces
    the run's own only where paired seeds say that it is better; then few-step solvers at several numbers of steps,
    which are timed; then steps of the best are cached as far as 2 % of the score allow. best is the fastest setting
    within 2 % of the best score, good within 10 %, draft within 50 %.

    Parameters
    ----------
    run
        A run folder of `udit train`.
    n
        Images per setting; fewer are faster and less precise, and fewer than 40 compare no averages and no guidance.
    budget
        Evaluations of the network in all, counted for one image, guided ones twice; what it does not allow is left out.
    device
        auto, cpu, cuda, cuda:N or mps.
    """
    if n < 20:
        raise UserError(f"--n is {n}; a score needs at least 20 images")
    if budget is not None and budget < 1:
        raise UserError(f"--budget is {budget}; it counts evaluations of the network, at least 1")

    from udit.tuning.quality import FILE, TUNED, Level
    from udit.tuning.search import tune as search

    found = search(run, num_samples=n, budget=budget, device=device, on_scored=lambda scored: say(in_short(scored)))
    rows = [(level, *_cells(getattr(found, level))) for level in get_args(Level)]
    say()
    say(table(("quality", "sampler", "guided", "deep part runs", "distance", "agreement", "ms per image"), rows))
    judge = found.protocol["judge"]
    say(f"\nwrote {run / FILE}; distances are of the run's own judge, {judge}, not the FID of the literature")
    if found.sigma_rel is not None:
        say(f"the average of length {found.sigma_rel:g} is better than the run's own and is in {run / TUNED}")
    if left := found.protocol["left_out"]:
        say(f"{left} settings were left out: --budget {budget} was spent")
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
