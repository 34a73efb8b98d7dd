"""Scoring EMA lengths against each other, from the snapshots of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from udit import dist
from udit.data.sources import parts_of
from udit.errors import UserError
from udit.evaluation.archive import keep
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import JudgeFeatures
from udit.evaluation.judges import judge_of
from udit.evaluation.sets import reference_of
from udit.evaluation.shards import drawing_of, shards_of
from udit.evaluation.standard import Scores, save_sweep, score, tables
from udit.evaluation.trust import warn_of_weak
from udit.files import check_room, write_text
from udit.run.scorable import require_scorable
from udit.scoring import JUDGE, draw_samples
from udit.store import read_run_config
from udit.training.posthoc import Snapshots, posthoc_ema

SIGMA_RELS = (0.03, 0.05, 0.075, 0.10, 0.15, 0.20, 0.25)
"""Lengths from short to nearly the mean over all steps."""


@dataclass(frozen=True)
class ScoredLength:
    """The scores of one EMA length."""

    sigma_rel: float
    """Standard deviation of the average's profile over the steps."""
    error: float
    """Of the fit that rebuilt it, see ``PosthocAverage``."""
    scores: Scores


def sweep_ema(
    run: Path | str,
    sigma_rels: Sequence[float] = SIGMA_RELS,
    *,
    num_samples: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> list[ScoredLength]:
    """Scores EMAs of several lengths on the same seeds, with the run's own judge; writes RUN/evaluation.

    There, ``metrics-ema-LENGTH.json`` has each length's scores, ``ema-sweep.md`` a table and ``ema-sweep.png`` a plot.
    The Fréchet distances are of the judge's features, not the FID of the literature.

    Args:
        run: a run folder, trained with ``training.posthoc_ema``.
        sigma_rels: the lengths, each above 0 and below 0.2887.
        num_samples: images sampled for each; the run's own setting if None.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: shows a bar.

    Raises:
        UserError: no lengths, no snapshots, or several processes.
    """
    if not sigma_rels:
        raise UserError("sigma_rels is empty; give at least one length, e.g. 0.05")
    folder = Path(run)
    values = read_run_config(folder)
    config = values.evaluation if num_samples is None else values.evaluation.replace(num_samples=num_samples)
    target = folder / "evaluation"
    world = dist.start(device)
    if world.size > 1:
        raise UserError("a sweep of EMA lengths runs as one process; start it without torchrun")
    source = values.data.scored().build()
    parts = parts_of(source, values.data)
    require_scorable(source.labels, parts)
    snapshots = Snapshots(folder / "posthoc")
    for sigma_rel in sigma_rels:
        snapshots.mixture(sigma_rel)  # refuses what cannot be rebuilt, before the first image
    check_room(target, 0)
    own = judge_of(source, parts, config.judge_steps, target / JUDGE, mirrored=values.data.mirrored)
    judge = JudgeFeatures(own)
    warning = warn_of_weak(own, source, parts)
    reference = reference_of(ImageSet.of_source(source, parts.train), judge)
    drawing = {"name": None, **drawing_of(config, values.sampling)}
    scored = []
    for sigma_rel in sigma_rels:
        average = posthoc_ema(folder, sigma_rel)
        weights = average.system.fingerprint
        shards = shards_of(weights, config, values.sampling, target)
        draw_samples(average.system, shards, config, values.sampling, world, progress)
        subject = {"run": str(run), "weights": weights, "step": average.step, "sigma_rel": sigma_rel}
        found = score(shards.images(), judge, reference, subject=subject, protocol=drawing).replace(warning=warning)
        keep(found, target / f"metrics-ema-{sigma_rel:g}.json")
        shards.remove()
        scored.append(ScoredLength(sigma_rel, average.error, found))
    named = [(f"{one.sigma_rel:g}", one.scores) for one in scored]
    save_sweep(named, target / "ema-sweep.png")
    write_text(target / "ema-sweep.md", tables(named) + "\n")
    return scored
