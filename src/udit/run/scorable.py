"""Whether a run's images can be judged by `udit eval`, which its data decide; free of torch.

Training says it before the first step, when the shares can still be changed, and evaluation before the first image.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from udit.errors import UserError
from udit.run.config import Run

if TYPE_CHECKING:
    from udit.data.sources import Labels, Parts

MIN_HELD_OUT = 2
"""Images of the judge and of the test part: a covariance takes two."""
MIN_TRAINING = 4
"""Training images: precision and recall look for the third nearest other one."""

log = logging.getLogger(__name__)


def what_is_missing(labels: Labels, parts: Parts) -> str | None:
    """What a data set lacks for its judge, with the remedy; None where nothing is missing.

    Args:
        labels: [N] of all images.
        parts: of the data set.
    """
    for name, part in (("judge", parts.judge), ("test", parts.test)):
        if len(part) < MIN_HELD_OUT:
            return f"the {name} part has {len(part)} images; raise data.{name}_share or add images"
    if len(parts.train) < MIN_TRAINING:
        return f"the training part has {len(parts.train)} images, and scores need {MIN_TRAINING}; add images"
    without = np.setdiff1d(np.arange(int(labels.max()) + 1), labels[parts.judge])
    if len(without):
        return f"the judge part has no image of class {without[0]}; raise data.judge_share or add images of it"
    return None


def require_scorable(labels: Labels, parts: Parts) -> None:
    """Refuses data that have no judge or no test images, before anything is computed.

    Raises:
        UserError: names the part, and what can be done.
    """
    if missing := what_is_missing(labels, parts):
        raise UserError(
            f"{missing}, in a new run: a trained one keeps its data; or score this one with --features inception"
        )


def can_be_judged(run: Run, labels: Labels, parts: Parts) -> bool:
    """Whether `udit eval` without options scores a run: of images, of classes, with a judge's share of the data."""
    if run.model.clip_frames is not None:
        return False
    return bool(run.model.num_classes) and what_is_missing(labels, parts) is None


def warn_before_training(run: Run, labels: Labels, parts: Parts) -> None:
    """Warns where `udit eval` will refuse the run that is about to be trained."""
    if run.model.num_classes and run.model.clip_frames is None and (missing := what_is_missing(labels, parts)):
        log.warning("`udit eval` will not judge this run: %s now, since a run that has begun keeps its data", missing)
