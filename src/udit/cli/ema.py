"""``udit ema``."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from udit.cli.output import say, table

ema = App(name="ema", help="EMA weights of any length, from a run with training.posthoc_ema.")


@ema.command
def make(run: Path, out: Path, /, *, sigma_rel: float, step: int | None = None) -> int:
    """Write a model folder with an EMA of any length.

    Parameters
    ----------
    run
        A run folder of `udit train` with training.posthoc_ema.
    out
        The model folder to write.
    sigma_rel
        Length of the average: the standard deviation of its profile over the steps, e.g. 0.07.
    step
        At which step it ends; the last snapshot's if not given.
    """
    from udit.store import save
    from udit.training.posthoc import posthoc_ema

    average = posthoc_ema(run, sigma_rel, step)
    save(average.system, out)
    say(f"wrote {out}: sigma_rel {sigma_rel:g} at step {average.step}, error of the profile {average.error:.2%}")
    if not average.spanned:
        say("the snapshots hardly represent that length: take one between theirs, or save snapshots more often")
    return 0


@ema.command
def sweep(
    run: Path,
    /,
    *,
    sigma_rels: tuple[float, ...] = (),
    n: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> int:
    """Score EMAs of several lengths on the same seeds: a table and a plot in RUN/evaluation.

    Fréchet distances are of the run's own judge, not the FID of the literature.

    Parameters
    ----------
    run
        A run folder of `udit train` with training.posthoc_ema.
    sigma_rels
        Lengths to score; 0.03, 0.05, 0.075, 0.1, 0.15, 0.2 and 0.25 if not given.
    n
        Samples of each; the run's own setting if not given.
    device
        auto, cpu, cuda, cuda:N or mps.
    progress
        Show the progress bar.
    """
    from udit.tuning.ema import SIGMA_RELS, sweep_ema

    scored = sweep_ema(run, sigma_rels or SIGMA_RELS, num_samples=n, device=device, progress=progress)
    rows = []
    for length in scored:
        fid = length.scores.distance
        ends = "-" if fid.interval is None else f"{fid.interval[0]:.4f} to {fid.interval[1]:.4f}"
        rows.append((f"{length.sigma_rel:g}", f"{length.error:.2%}", f"{fid.value:.4f}", ends))
    say(table(("sigma_rel", "error of the profile", "distance (judge, not FID)", "95 %, unlimited samples"), rows))
    say(f"\ndistances are by {scored[0].scores.protocol['extractor']}")
    say(f"wrote {run / 'evaluation'}/: ema-sweep.md, ema-sweep.png, one metrics-ema-*.json per length")
    return 0
