"""``udit ema``."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from udit.cli.output import say, table
from udit.errors import UserError

SIGMA_RELS = (0.03, 0.05, 0.075, 0.10, 0.15, 0.20, 0.25)
FAR = 0.05
"""Of the profile's norm: beyond it the snapshots do not span a length, and the command says so."""

ema = App(name="ema", help="Averages of weights of any length, from a run with training.posthoc_ema.")


@ema.command
def make(run: Path, out: Path, /, *, sigma_rel: float, step: int | None = None) -> int:
    """Write a model folder with an average of any length.

    Parameters
    ----------
    run
        A run folder of `udit train` with training.posthoc_ema.
    out
        The model folder to write.
    sigma_rel
        Length of the average: the deviation of its profile over the steps, e.g. 0.07.
    step
        At which step it ends; the last snapshot's if not given.
    """
    from udit.assemble import System
    from udit.run.system import SystemConfig
    from udit.store import network, read_run_config, save
    from udit.training.posthoc import Snapshots

    values = read_run_config(run)
    rebuilt = Snapshots(run / "posthoc").rebuild(sigma_rel, step)
    config = SystemConfig.of(values, rebuilt.step)
    save(System(config, network(config, rebuilt.state, run / "posthoc")), out)
    say(f"wrote {out}: sigma_rel {sigma_rel:g} at step {rebuilt.step}, profile off by {rebuilt.error:.2%}")
    if rebuilt.error > FAR:
        say("the snapshots hardly span that length: take one between theirs, or snapshots more often")
    return 0


@ema.command
def sweep(
    run: Path,
    /,
    *,
    sigma_rels: tuple[float, ...] = SIGMA_RELS,
    n: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> int:
    """Score averages of several lengths on the same seeds: a table and a picture in RUN/evaluation.

    Fréchet distances are of the run's own judge, not the FID of the literature.

    Parameters
    ----------
    run
        A run folder of `udit train` with training.posthoc_ema.
    sigma_rels
        Lengths to score.
    n
        Samples of each; the run's own setting if not given.
    device
        auto, cpu, cuda, cuda:N or mps.
    progress
        Show the progress bar.
    """
    if not sigma_rels:
        raise UserError("--sigma-rels is empty; give at least one length, e.g. 0.05")

    import numpy as np

    from udit import dist
    from udit.assemble import System
    from udit.cli.evaluate import draw, drawing_of
    from udit.data.sources import parts_of
    from udit.evaluation.features import JudgeFeatures
    from udit.evaluation.score import judge_of
    from udit.evaluation.sets import reference_of
    from udit.evaluation.standard import Scores, save_sweep, score, tables
    from udit.files import write_text
    from udit.run.system import SystemConfig
    from udit.store import fingerprint, network, read_run_config
    from udit.training.posthoc import Snapshots

    values = read_run_config(run)
    config = values.evaluation if n is None else values.evaluation.replace(num_samples=n)
    snapshots, target = Snapshots(run / "posthoc"), run / "evaluation"
    world = dist.start(device)
    if world.size > 1:
        raise UserError("udit ema sweep runs as one process; start it without torchrun")
    source = values.data.build()
    parts = parts_of(source, values.data)
    judge = JudgeFeatures(judge_of(source, parts.judge, config.judge_steps, target / "judge.safetensors"))
    reference = reference_of(np.stack([source.image(int(i)) for i in parts.train]), judge)
    named: list[tuple[str, Scores]] = []
    rows = []
    for sigma_rel in sigma_rels:
        rebuilt = snapshots.rebuild(sigma_rel)
        system_config = SystemConfig.of(values, rebuilt.step)
        system = System(system_config, network(system_config, rebuilt.state, run / "posthoc"))
        weights = fingerprint(system.backbone)
        images, shards = draw(system, weights, config, values.sampling, target, world, progress)
        assert images is not None, "one process is rank 0"
        subject = {"run": str(run), "weights": weights, "step": rebuilt.step, "sigma_rel": sigma_rel}
        drawing = {"name": None, **drawing_of(config, values.sampling)}
        found = score(images.numpy(), judge, reference, subject=subject, protocol=drawing)
        found.write(target / f"metrics-ema-{sigma_rel:g}.json")
        shards.remove()
        named.append((f"{sigma_rel:g}", found))
        fid = found.scores["fid"]
        ends = "-" if fid.interval is None else f"{fid.interval[0]:.4f} to {fid.interval[1]:.4f}"
        rows.append((f"{sigma_rel:g}", f"{rebuilt.error:.2%}", f"{fid.value:.4f}", ends))
    save_sweep(named, target / "ema-sweep.png")
    write_text(target / "ema-sweep.md", tables(named) + "\n")
    say(table(("sigma_rel", "profile off by", "distance (judge, not FID)", "95 %, endless samples"), rows))
    say(f"\nwrote {target}/: ema-sweep.md, ema-sweep.png, a metrics-ema-*.json a length")
    return 0
