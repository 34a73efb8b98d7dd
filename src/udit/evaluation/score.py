"""Scores generated images against the data set that their model was trained on, with a judge trained on that data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udit.data.sources import Parts, Pixels, Source
from udit.errors import UserError
from udit.evaluation import frechet, metrics
from udit.evaluation.gathered import KEPT
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judges import SEED, judge_of
from udit.evaluation.real import RealImages
from udit.evaluation.report import Report
from udit.evaluation.rows import Rows
from udit.evaluation.trust import Trust
from udit.run.config import EvaluationConfig
from udit.run.scorable import require_scorable


def score_with_judge(
    images: Pixels | ImageSet,
    labels: Sequence[int],
    source: Source,
    parts: Parts,
    config: EvaluationConfig,
    protocol: dict[str, Any],
    judge_path: Path | None = None,
    *,
    mirrored: bool = False,
    keep: Callable[[Rows], object] = lambda _: None,
) -> Report:
    """Scores generated images; the reference is the part of the data that the generator was trained on.

    Args:
        images: uint8 [N, C, H, W], or a set.
        labels: the N classes that were requested.
        source: the data set.
        parts: its split: the judge is trained on ``judge``; ``test`` are held-out real images.
        config: training steps of the judge, bootstrap resamples.
        protocol: how the images were generated, as plain values; goes into the report unchanged.
        judge_path: where the judge is kept; a judge that was trained on the same images is used again.
        mirrored: whether the generator's training images are mirrored.
        keep: called with the features of the images and of the reference, without facts on seeds.

    Raises:
        UserError: too few images in a part, or images of another shape than the data.
    """
    require_scorable(source.labels, parts)
    generated = _checked(images, labels, source, parts)
    judge = judge_of(source, parts, config.judge_steps, judge_path, mirrored=mirrored)
    known = RealImages.of(judge, source, parts)
    reference, real = known.balls.features, known.test
    near_samples = np.full(len(generated), np.inf)
    for chunk in ImageSet.of_source(source, parts.train).chunks():
        metrics.lower_to_nearest(near_samples, generated, chunk)
    drawn = generated.map(judge.features)
    statistics = frechet.Statistics.of(reference)
    unlimited = frechet.measure(drawn, statistics)
    subsets = np.array_split(drawn, 5) if len(drawn) >= 10 else [drawn]
    shares = metrics.precision_recall(samples=drawn, reference=known.balls)
    count = min(len(drawn), len(real))
    agreed = judge.classes(drawn) == np.array(labels, np.int64)
    agreement = float(agreed.mean())
    trust = Trust.of(judge.classes(real), source.labels[parts.test])
    memorised, memorised_real = metrics.memorised_share(near_samples, known.nearest)
    space = {
        "extractor": judge.described,
        "extractor_sha256": judge.fingerprint,
        "reference_sha256": known.digest,
    }
    some, real_rows = (np.arange(min(n, KEPT)) * n // min(n, KEPT) for n in (len(drawn), len(reference)))
    keep(Rows(drawn[some], agreed[some], statistics, reference[real_rows], space | {"inception": False}))
    return Report(
        num_samples=len(generated),
        distance=metrics.frechet_distance(drawn, reference),
        distance_interval=metrics.bootstrap_interval(
            metrics.frechet_distance, drawn, reference, config.bootstrap, SEED
        ),
        distance_debiased=unlimited.debiased,
        debiased_interval=unlimited.interval,
        distance_spread=tuple(frechet.distance(frechet.Statistics.of(part), statistics) for part in subsets),
        precision=shares.precision,
        precision_interval=metrics.share_interval(shares.precision, len(generated)),
        recall=shares.recall,
        matched_count=count,
        distance_matched=metrics.mean_distance_of(count, drawn, reference, SEED),
        distance_real=metrics.mean_distance_of(count, real, reference, SEED),
        agreement=agreement,
        agreement_interval=metrics.share_interval(agreement, len(generated)),
        judge_on_test=trust.accuracy,
        judge_chance=trust.chance,
        judge_warning=trust.warning(),
        judge_on_train=known.right / len(parts.train),
        memorised=memorised,
        memorised_real=memorised_real,
        protocol=json.loads(json.dumps(protocol)),
        judge=judge.name,
        judge_sha256=judge.fingerprint,
        reference_sha256=known.digest,
        reference_count=len(parts.train),
    )


def _checked(images: Pixels | ImageSet, labels: Sequence[int], source: Source, parts: Parts) -> ImageSet:
    """The images, which must be like the data's."""
    shape = source.image(int(parts.train[0])).shape
    dtype = images.dtype if isinstance(images, np.ndarray) else np.dtype(np.uint8)
    generated = ImageSet.of(images)
    if dtype != np.uint8 or generated.shape != shape or len(generated) != len(labels) or len(generated) < 2:
        raise UserError(
            f"images are {dtype} {[len(generated), *generated.shape]} with {len(labels)} labels; needed are at least 2 "
            f"of uint8 {list(shape)} and a label for each"
        )
    return generated.kept()
