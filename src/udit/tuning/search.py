"""Which ways of drawing from a run are good, and which quick: all on the same seeds, by the judge of ``udit eval``."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udit.assemble import System
from udit.data.sources import Pixels, parts_of
from udit.diffusion.calibrate import Drift, watch
from udit.diffusion.config import SamplingConfig
from udit.diffusion.sample import SeededNoise, make_sampler
from udit.errors import UserError
from udit.evaluation import frechet, metrics
from udit.evaluation.features import Judge
from udit.evaluation.score import SEED, chunks, judge_of
from udit.evaluation.shards import labels_for
from udit.run.config import Run
from udit.store import fingerprint
from udit.tuning.quality import LOSSES, Quality, Scored, fastest

WATCHED = 16
"""Pictures of which a run is watched, with seeds beyond the scored ones."""
SHARES = (0.04, 0.06, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.33, 0.5)
"""Of a run's evaluations that a cache may refresh."""
RESAMPLES = 200
"""Behind a distance's interval, which is of the pictures alone: the reference stays as it is."""
FEW_STEPS: dict[str, tuple[str, ...]] = {
    "flow": ("dpmpp", "unipc", "flow-heun"),
    "ddpm": ("dpmpp", "unipc", "ddim"),
    "edm": ("edm-heun", "edm-euler"),
}
STEPS = (5, 9, 13, 21)
"""Odd: Heun's steps take two evaluations each and the last one takes one."""
INTERVAL = (0.2, 0.8)
"""Times between which guidance matters, where it does not act at all."""


@dataclass(frozen=True)
class Scale:
    """Weighs ways of drawing from one system.

    Attributes:
        system: fused.
        judge: of the run's data.
        reference: features of its training pictures.
        count: pictures of each way, of all classes in turn.
        batch_size: pictures at a time.
        first_seed: of the first picture.
    """

    system: System
    judge: Judge
    reference: frechet.Statistics
    count: int
    batch_size: int
    first_seed: int = 0

    @staticmethod
    def of(run: Run, system: System, judge_path: Path, count: int) -> Scale:
        """A scale with the judge that ``udit eval`` uses for a run.

        Raises:
            UserError: a model without classes, or too few pictures to judge by.
        """
        if not run.model.num_classes:
            raise UserError("class agreement needs labels and this model is unconditional; tune one with classes")
        source = run.data.build()
        parts = parts_of(source, run.data)
        judge = judge_of(source, parts.judge, run.evaluation.judge_steps, judge_path)
        features = [judge.features(chunk) for chunk in chunks(source, parts.train)]
        reference = frechet.Statistics.of(np.concatenate(features))
        batch_size, first_seed = min(count, run.evaluation.batch_size), run.evaluation.first_seed
        return Scale(system.fused(), judge, reference, count, batch_size, first_seed)

    @property
    def labels(self) -> list[int]:
        """Of the pictures."""
        return labels_for(self.count, self.system.config.model.num_classes, "balanced", self.first_seed)

    def weigh(self, how: SamplingConfig) -> Scored:
        """Draws, times and scores."""
        clock = _clock(self.system)
        start = clock()
        seeds = range(self.first_seed, self.first_seed + self.count)
        batches = self.system.generate(seeds, self.labels, sampling=how, batch_size=self.batch_size)
        images = torch.cat(list(batches)).numpy()
        return self.score(how, images, (clock() - start) / self.count)

    def score(self, how: SamplingConfig, images: Pixels, seconds: float) -> Scored:
        """Scores pictures [N, C, H, W] uint8 of ``labels`` that were drawn already."""
        features, labels = self.judge.features(images), np.array(self.labels, np.int64)
        agreement = metrics.class_agreement(self.judge.predict(images), labels)

        def distance(some: frechet.Array, _: frechet.Array) -> float:
            return frechet.distance(frechet.Statistics.of(some), self.reference)

        return Scored(
            sampling=how,
            distance=frechet.distance(frechet.Statistics.of(features), self.reference),
            distance_interval=metrics.bootstrap_interval(distance, features, features[:1], RESAMPLES, SEED),
            agreement=agreement,
            agreement_interval=metrics.share_interval(agreement, len(images)),
            seconds=seconds,
        )

    def watch(self, how: SamplingConfig) -> Drift:
        """What the deep part says along a way without a cache."""
        config, device = self.system.config, next(self.system.backbone.parameters()).device
        seeds = range(self.first_seed + self.count, self.first_seed + self.count + WATCHED)
        noise = SeededNoise(seeds, (config.model.in_channels, *config.model.size), device)
        denoise = self.system.guided(how)
        y = torch.tensor(labels_for(WATCHED, config.model.num_classes, "balanced", 0), device=device)
        sampler = make_sampler(how.sampler, eta=how.eta, clip=how.clip)
        return watch(denoise, noise(0), scheduler=sampler, steps=how.steps, y=y, noise=noise)

    def cache(
        self, plain: Scored, loss: float, *, guidance: bool, tell: Callable[[Scored], object] = lambda _: None
    ) -> Scored | None:
        """The same way with a step cache that refreshes as few calls as the loss allows; None if more than half.

        Bisects ``SHARES``; which calls are refreshed for each is what ``Drift.plan`` takes for best.
        """
        drift = self.watch(plain.sampling)
        counts = sorted({max(1, round(share * len(drift.times))) for share in SHARES})
        few, enough, found = -1, len(counts), None
        while enough - few > 1:
            middle = (few + enough) // 2
            cache = drift.plan(counts[middle], guidance=guidance)
            how = plain.sampling.replace(refresh=cache.refresh, forecast=cache.forecast, keep_guidance=guidance)
            tell(scored := self.weigh(how))
            if scored.within(loss, plain):
                enough, found = middle, scored
            else:
                few = middle
        return found

    def protocol(self) -> dict[str, Any]:
        """How it weighs, as plain values."""
        return {
            "pictures": self.count,
            "first_seed": self.first_seed,
            "labels": "balanced",
            "batch_size": self.batch_size,
            "judge_sha256": self.judge.fingerprint,
            "reference_count": self.reference.count,
            "clock": "processor" if _clock(self.system) is time.process_time else "wall",
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "torch": torch.__version__,
        }


def _clock(system: System) -> Callable[[], float]:
    """The processor's time where one thread does it all: it does not know what else the machine does."""
    on_cpu = next(system.backbone.parameters()).device.type == "cpu"
    return time.process_time if on_cpu and torch.get_num_threads() == 1 else time.perf_counter


def ways(own: SamplingConfig, kind: str, counts: Sequence[int]) -> Iterator[SamplingConfig]:
    """Few-step solvers at some numbers of steps, guided as the run says and within an interval."""
    intervals = [own.guidance_interval] + ([INTERVAL] if own.guidance != 1 else [])
    guided = {"guidance": own.guidance, "guidance_channels": own.guidance_channels}
    for sampler in FEW_STEPS[kind]:
        for steps in counts:
            for interval in dict.fromkeys(intervals):
                yield SamplingConfig().replace(sampler=sampler, steps=steps, guidance_interval=interval, **guided)


def tune(scale: Scale, steps_done: int | None, tell: Callable[[Scored], object] = lambda _: None) -> Quality:
    """Weighs every way, then puts a cache on each level's pick as far as its loss allows."""
    config = scale.system.config
    tried: list[Scored] = []

    def told(scored: Scored) -> None:
        tried.append(scored)
        tell(scored)

    for how in ways(config.sampling, config.diffusion.kind, STEPS):
        told(scale.weigh(how))
    best = min(tried, key=lambda each: each.distance)
    plain = {pick.sampling: pick for pick in (fastest(tried, loss, best) for loss in LOSSES.values())}
    for how, pick in plain.items():
        scale.cache(pick, LOSSES["best"], guidance=how.guidance != 1, tell=told)
    picks = {level: fastest(tried, loss, best) for level, loss in LOSSES.items()}
    weights = fingerprint(scale.system.backbone)
    return Quality(weights=weights, step=steps_done, protocol=scale.protocol(), tried=tuple(tried), **picks)
