"""``tune``: finds sampling settings of a run that give good images, and faster ones.

They are scored by the judge of ``udit eval``, on images of the same seeds and labels.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udit import dist
from udit.assemble import System
from udit.data.sources import Pixels, parts_of
from udit.diffusion.calibrate import Drift, watch
from udit.diffusion.config import SamplingConfig
from udit.diffusion.sample import SeededNoise, make_sampler
from udit.diffusion.samplers import SAMPLERS
from udit.errors import UserError
from udit.evaluation import frechet, metrics
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import Judge
from udit.evaluation.judges import SEED, judge_of
from udit.evaluation.paired import LEAST
from udit.evaluation.shards import labels_for
from udit.evaluation.trust import warn_of_weak
from udit.files import check_room
from udit.run.config import Run
from udit.run.scorable import require_scorable
from udit.store import load, read_run_config, save
from udit.training.posthoc import posthoc_ema
from udit.tuning.ema import SIGMA_RELS
from udit.tuning.quality import FILE, LOSSES, TUNED, Quality, Scored, ScoredAverage, default, fastest
from udit.tuning.sweep import INTERVAL, Sweep, averages_of, cost, difference, guidances

WATCHED = 16
"""Images whose features are recorded to choose the steps that a cache recomputes; seeds follow the scored ones."""
SHARES = (0.04, 0.06, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.33, 0.5)
"""Of all evaluations, at which a cache may recompute the deep part of the network."""
RESAMPLES = 200
"""Bootstrap resamples of the images behind a distance's interval; the reference is held fixed."""
STEPS = (5, 9, 13, 21)
"""Odd: each of Heun's steps takes two evaluations, except the last, which takes one."""
FEW = (1, 2, 4)
"""Of models that are trained for few evaluations."""
MIN_IMAGES = 20


@dataclass(frozen=True)
class Scorer:
    """Scores and times sampling settings of one system.

    Attributes:
        system: fused.
        judge: of the run's data.
        reference: features of its training images.
        count: images per setting, of all classes in turn.
        batch_size: images that are sampled together.
        first_seed: of the first image.
        warning: that the judge is weak, in one line; None where it is not.
        features: of the images of each setting that was measured, by which settings are compared seed by seed.
    """

    system: System
    judge: Judge
    reference: frechet.Statistics
    count: int
    batch_size: int
    first_seed: int = 0
    warning: str | None = None
    features: dict[SamplingConfig, frechet.Array] = field(default_factory=dict)

    def of_other(self, system: System) -> Scorer:
        """The same for another system of the run."""
        return replace(self, system=system.fused(), features={})

    @staticmethod
    def of(run: Run, system: System, judge_path: Path, count: int) -> Scorer:
        """A scorer with the judge that ``udit eval`` uses for a run.

        Raises:
            UserError: a model without classes, or too few images to train the judge.
        """
        if not run.model.num_classes:
            kind = "takes texts" if run.text else "is unconditional"
            raise UserError(
                f"class agreement needs labels and this model {kind}; choose its setting by eye (`udit studio`), or "
                "tune a model with classes"
            )
        source = run.data.scored().build()
        parts = parts_of(source, run.data)
        require_scorable(source.labels, parts)
        judge = judge_of(source, parts, run.evaluation.judge_steps, judge_path, mirrored=run.data.mirrored)
        reference = frechet.Statistics.of(ImageSet.of_source(source, parts.train).map(judge.features))
        batch_size, first_seed = min(count, run.evaluation.batch_size), run.evaluation.first_seed
        warning = warn_of_weak(judge, source, parts)
        return Scorer(system.fused(), judge, reference, count, batch_size, first_seed, warning)

    @property
    def labels(self) -> list[int]:
        """Of the images."""
        return labels_for(self.count, self.system.config.classes.trained, "balanced", self.first_seed)

    def measure(self, sampling: SamplingConfig) -> Scored:
        """Samples images, times that and scores them."""
        clock = _clock(self.system)
        start = clock()
        seeds = range(self.first_seed, self.first_seed + self.count)
        batches = self.system.generate(seeds, self.labels, sampling=sampling, batch_size=self.batch_size)
        images = torch.cat(list(batches)).numpy()
        return self.score(sampling, images, (clock() - start) / self.count)

    def score(self, sampling: SamplingConfig, images: Pixels, seconds: float) -> Scored:
        """Scores images uint8 [N, C, H, W] of ``labels`` that were sampled in ``seconds`` each."""
        features, labels = self.judge.features(images), np.array(self.labels, np.int64)
        self.features[sampling] = features
        agreement = metrics.class_agreement(self.judge.classes(features), labels)

        def distance(some: frechet.Array, _: frechet.Array) -> float:
            return frechet.distance(frechet.Statistics.of(some), self.reference)

        return Scored(
            sampling=sampling,
            distance=frechet.distance(frechet.Statistics.of(features), self.reference),
            distance_interval=metrics.bootstrap_interval(distance, features, features[:1], RESAMPLES, SEED),
            agreement=agreement,
            agreement_interval=metrics.share_interval(agreement, len(images)),
            seconds=seconds,
        )

    def watch(self, sampling: SamplingConfig) -> Drift:
        """Records what the deep part of the network returns at every evaluation of a setting without a cache."""
        config, device = self.system.config, next(self.system.backbone.parameters()).device
        seeds = range(self.first_seed + self.count, self.first_seed + self.count + WATCHED)
        noise = SeededNoise(seeds, config.model.input_shape(), device)
        denoise = self.system.guided(sampling)
        y = torch.tensor(labels_for(WATCHED, config.classes.trained, "balanced", 0), device=device)
        sampler = make_sampler(sampling.sampler, eta=sampling.eta, clip=sampling.clip)
        return watch(denoise, noise(0), sampler=sampler, steps=sampling.steps, y=y, noise=noise)

    def cache(
        self, plain: Scored, loss: float, *, guidance: bool, on_scored: Callable[[Scored], object] = lambda _: None
    ) -> Scored | None:
        """The same setting with a step cache that recomputes as few evaluations as the loss allows; None if over half.

        Bisects ``SHARES``; ``Drift.plan`` chooses the evaluations for each of them. None as well where the steps of a
        sampler are too few for a cache.
        """
        if not SAMPLERS[plain.sampling.sampler].caches:
            return None
        drift = self.watch(plain.sampling)
        counts = sorted({max(1, round(share * len(drift.times))) for share in SHARES})
        few, enough, found = -1, len(counts), None
        while enough - few > 1:
            middle = (few + enough) // 2
            cache = drift.plan(counts[middle], guidance=guidance)
            cached = plain.sampling.replace(refresh=cache.refresh, forecast=cache.forecast, keep_guidance=guidance)
            on_scored(scored := self.measure(cached))
            if scored.within(loss, plain):
                enough, found = middle, scored
            else:
                few = middle
        return found

    def protocol(self) -> dict[str, Any]:
        """How settings are scored, as plain values."""
        return {
            "pictures": self.count,
            "first_seed": self.first_seed,
            "labels": "balanced",
            "batch_size": self.batch_size,
            "judge": self.judge.described,
            "judge_sha256": self.judge.fingerprint,
            "reference_count": self.reference.count,
            "clock": "processor" if _clock(self.system) is time.process_time else "wall",
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": torch.__version__,
        }


def _clock(system: System) -> Callable[[], float]:
    """Processor time where one thread does all the work, which other processes do not disturb; wall time otherwise."""
    on_cpu = next(system.backbone.parameters()).device.type == "cpu"
    return time.process_time if on_cpu and torch.get_num_threads() == 1 else time.perf_counter


def candidates(own: SamplingConfig, samplers: Sequence[str], counts: Sequence[int]) -> Iterator[SamplingConfig]:
    """Few-step solvers at some numbers of steps, with the run's own guidance and with guidance within an interval."""
    limited = own.guidance == 1 or own.guidance_levels is not None
    intervals = [own.guidance_interval] + ([] if limited else [INTERVAL])
    for sampler in samplers:
        for steps in counts:
            for interval in dict.fromkeys(intervals):
                guided = own.guidance_for(sampler) | {"guidance_interval": interval}
                yield SamplingConfig().replace(sampler=sampler, steps=steps, **guided)


def search(
    scorer: Scorer,
    steps_done: int | None,
    on_scored: Callable[[Scored], object] = lambda _: None,
    *,
    averages: Sequence[tuple[float, Callable[[], Scorer]]] = (),
    budget: int | None = None,
) -> tuple[Quality, Scorer]:
    """One sweep: the average of the weights, guidance and its interval, solvers and steps, and caches.

    Args:
        scorer: of the run.
        steps_done: training steps of the weights.
        on_scored: called with each setting when it has been scored.
        averages: lengths of other averages of the weights, each with what makes its scorer.
        budget: evaluations of the network, counted for one image; None is no limit.

    Returns:
        What was found, and the scorer of the weights for which it was.
    """
    config = scorer.system.config
    sweep = Sweep(budget, on_scored)
    samplers, few = config.diffusion.few_step_samplers, config.diffusion.sampling_steps is not None
    start = default("good", config.sampling, config.diffusion)
    tried: list[Scored] = []
    found: tuple[ScoredAverage, ...] = ()
    length: float | None = None
    chosen: Scorer = scorer
    if not few and scorer.count >= LEAST and (averages or start.guidance != 1):
        tried += [scored for scored in [sweep.measure(scorer, start, always=True)] if scored]
        chosen, length, found = averages_of(sweep, scorer, start, averages)
        if chosen is not scorer:
            tried = [one.scored for one in found if one.sigma_rel == length]
        start, seen = sweep.better(chosen, start, guidances(start))
        tried += seen
    ways = candidates(start, samplers, FEW if few else STEPS)
    fresh = (how for how in ways if how not in {each.sampling for each in tried})
    for place, sampling in enumerate(fresh):
        tried += [scored for scored in [sweep.measure(chosen, sampling, always=not tried and not place)] if scored]
    best_scored = min(tried, key=lambda each: each.distance)
    plain = {pick.sampling: pick for pick in (fastest(tried, loss, best_scored) for loss in LOSSES.values())}

    def keep(scored: Scored) -> None:
        tried.append(scored)
        sweep.spent += scorer.count * cost(scored.sampling)
        on_scored(scored)

    for sampling, pick in plain.items():
        if budget is None or sweep.spent < budget:
            chosen.cache(pick, LOSSES["best"], guidance=sampling.guidance != 1, on_scored=keep)
    apart = [difference(chosen, each.sampling, chosen, best_scored.sampling) for each in tried]
    quality = Quality(
        weights=chosen.system.fingerprint,
        step=steps_done,
        protocol=chosen.protocol() | {"budget": budget, "spent": sweep.spent, "left_out": sweep.left_out},
        warning=scorer.warning,
        tried=tuple(tried),
        differences=tuple(None if each is None else each.interval for each in apart),
        sigma_rel=length,
        averages=found,
        **{level: fastest(tried, loss, best_scored) for level, loss in LOSSES.items()},
    )
    return quality, chosen


def tune(
    run: str | Path,
    *,
    num_samples: int = 500,
    budget: int | None = None,
    device: str = "auto",
    on_scored: Callable[[Scored], object] = lambda _: None,
) -> Quality:
    """Finds the settings behind ``quality="draft"``, ``"good"`` and ``"best"`` and writes them to RUN/quality.json.

    One sweep, on the same seeds, by the run's own judge: averages of the weights of other lengths (of a run with
    ``training.posthoc_ema``) and scales of guidance, at all times and within an interval, each of which replaces the
    run's own only where it is better by paired seeds; then few-step solvers at several numbers of steps; then
    evaluations of the best are cached as far as 2 % of the score allow. "best" is the fastest setting within 2 % of the
    best score, "good" within 10 %, "draft" within 50 %. Where another average is better, it is written to RUN/tuned,
    which ``udit sample RUN --quality`` and ``udit eval RUN --quality`` then use. With a weak judge a warning comes
    first, and is kept in the file (``Quality.warning``).

    Args:
        run: folder of a training run, of a model with classes.
        num_samples: images per setting, at least 20; fewer are faster and less precise, and fewer than 40 compare no
            averages and no guidance.
        budget: evaluations of the network in all, counted for one image, guided ones twice; what it does not allow is
            left out. None is no limit.
        device: auto, cpu, cuda, cuda:N or mps.
        on_scored: called with each setting when it has been scored.

    Raises:
        UserError: no run, a model without classes, too few images, or several processes.
        RunError: the result cannot be written.
    """
    if num_samples < MIN_IMAGES:
        raise UserError(f"num_samples is {num_samples}; a score needs at least {MIN_IMAGES} images")
    values = read_run_config(run)
    values.model.refuse_clips("udit tune")
    world = dist.start(device)
    if world.size > 1:
        raise UserError("udit tune runs as one process; start it without torchrun")
    check_room(Path(run), 0)
    system = load(run).to(world.device)
    scorer = Scorer.of(values, system, Path(run) / "evaluation" / "judge.safetensors", num_samples)
    found, _ = search(scorer, system.config.steps, on_scored, averages=_averages(Path(run), scorer), budget=budget)
    if found.sigma_rel is not None:
        save(posthoc_ema(run, found.sigma_rel).system, Path(run) / TUNED)
        found.write(Path(run) / TUNED / FILE)
    found.write(Path(run) / FILE)
    return found


def _averages(run: Path, scorer: Scorer) -> list[tuple[float, Callable[[], Scorer]]]:
    """Averages of other lengths than the run's own; none of a run without snapshots."""
    if not any((run / "posthoc").glob("step-*.safetensors")):
        return []
    device = next(scorer.system.backbone.parameters()).device

    def make(sigma_rel: float) -> Callable[[], Scorer]:
        return lambda: scorer.of_other(posthoc_ema(run, sigma_rel).system.to(device))

    return [(sigma_rel, make(sigma_rel)) for sigma_rel in SIGMA_RELS]
