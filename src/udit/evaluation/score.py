"""Scores samples against the data set they were learnt from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from udit.data.sources import Labels, Parts, Pixels, Source
from udit.errors import UserError
from udit.evaluation import frechet, metrics
from udit.evaluation.features import NAME, Judge, train_judge
from udit.evaluation.report import Report
from udit.run.config import EvaluationConfig

SEED = 0
"""Of judge and bootstrap: one judge for all runs on the same data, so that their scores compare."""

logger = logging.getLogger(__name__)


def evaluate(
    samples: Tensor,
    labels: Sequence[int],
    source: Source,
    parts: Parts,
    config: EvaluationConfig,
    protocol: dict[str, Any],
    judge_path: Path | None = None,
) -> Report:
    """Scores samples; reference is the part of the data that the generator was trained on.

    Args:
        samples: uint8 [N, C, H, W].
        labels: N classes that were asked for.
        source: the data set.
        parts: its split: the judge is trained on ``judge``, ``test`` stands for fresh real pictures.
        config: steps of the judge, resamplings.
        protocol: how the samples were made, as plain values; goes into the report as it is.
        judge_path: where the judge is kept; one that was trained on the same pictures is used again.

    Raises:
        UserError: too few pictures to judge by, or samples of another shape than the data.
    """
    for name, part in (("judge", parts.judge), ("test", parts.test)):
        if len(part) < 2:
            raise UserError(f"the {name} part has {len(part)} pictures; raise data.{name}_share or add pictures")
    images = samples.numpy()
    shape = source.image(int(parts.train[0])).shape
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) != len(labels) or len(images) < 2:
        raise UserError(
            f"samples are {images.dtype} {list(images.shape)} with {len(labels)} labels; needed are at least 2 of "
            f"uint8 {list(shape)} and a label for each"
        )
    judge = judge_of(source, parts.judge, config.judge_steps, judge_path)

    test = next(chunks(source, parts.test, len(parts.test)))
    features, right = [], 0
    near_samples, near_test = np.full(len(images), np.inf), np.full(len(test), np.inf)
    digest = hashlib.sha256(repr(shape).encode())
    done = 0
    for chunk in chunks(source, parts.train):
        features.append(judge.features(chunk))
        right += int((judge.predict(chunk) == source.labels[parts.train[done : done + len(chunk)]]).sum())
        near_samples = np.minimum(near_samples, metrics.nearest_distances(images, chunk))
        near_test = np.minimum(near_test, metrics.nearest_distances(test, chunk))
        digest.update(chunk.tobytes())
        done += len(chunk)

    reference, drawn, real = np.concatenate(features), judge.features(images), judge.features(test)
    statistics = frechet.Statistics.of(reference)
    endless = frechet.measure(drawn, statistics)
    fifths = np.array_split(drawn, 5) if len(drawn) >= 10 else [drawn]
    shares = metrics.precision_recall(samples=drawn, reference=reference)
    count = min(len(drawn), len(real))
    agreement = metrics.class_agreement(judge.predict(images), np.array(labels, np.int64))
    memorised, memorised_real = metrics.memorised_share(near_samples, near_test)
    return Report(
        num_samples=len(images),
        distance=metrics.frechet_distance(drawn, reference),
        distance_interval=metrics.bootstrap_interval(
            metrics.frechet_distance, drawn, reference, config.bootstrap, SEED
        ),
        distance_debiased=endless.debiased,
        debiased_interval=endless.interval,
        distance_spread=tuple(frechet.distance(frechet.Statistics.of(part), statistics) for part in fifths),
        precision=shares.precision,
        precision_interval=metrics.share_interval(shares.precision, len(images)),
        recall=shares.recall,
        matched_count=count,
        distance_matched=metrics.mean_distance_of(count, drawn, reference, SEED),
        distance_real=metrics.mean_distance_of(count, real, reference, SEED),
        agreement=agreement,
        agreement_interval=metrics.share_interval(agreement, len(images)),
        judge_on_test=metrics.class_agreement(judge.predict(test), source.labels[parts.test]),
        judge_on_train=right / len(parts.train),
        memorised=memorised,
        memorised_real=memorised_real,
        protocol=json.loads(json.dumps(protocol)),
        judge=NAME,
        judge_sha256=judge.fingerprint,
        reference_sha256=digest.hexdigest(),
        reference_count=len(parts.train),
    )


def judge_of(source: Source, part: Labels, steps: int, path: Path | None) -> Judge:
    """The kept judge if it comes from the same pictures and steps, else a new one, which is kept."""
    shape, ids = source.image(int(part[0])).shape, hashlib.sha256(part.astype("<i8").tobytes()).hexdigest()
    origin = json.dumps({"data": source.fingerprint, "pictures": ids, "shape": shape, "steps": steps, "seed": SEED})
    if path is not None and path.exists():
        try:
            kept = Judge.load(path)
        except UserError as error:
            logger.warning("training a new judge: %s", error)
        else:
            if kept.origin == origin:
                return kept
    images = next(chunks(source, part, len(part)))
    num_classes = int(source.labels.max()) + 1
    judge = train_judge(images, source.labels[part], num_classes, steps=steps, seed=SEED, origin=origin)
    if path is not None:
        judge.save(path)
    return judge


def chunks(source: Source, part: Labels, size: int = 1024) -> Iterator[Pixels]:
    """The pictures of a part, [size, C, H, W] at a time: a reference set need not fit into memory."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(part), size):
            yield np.stack(list(pool.map(source.image, part[start : start + size].tolist())))
