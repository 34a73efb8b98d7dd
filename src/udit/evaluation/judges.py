"""The judge of a data set: the one in a run's folder, the one in the user's cache, or a new one, kept in both."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from pathlib import Path

from udit.data.sources import Labels, Parts, Source, digest_of
from udit.errors import UserError
from udit.evaluation.image_set import ImageSet
from udit.evaluation.judge import Judge, train_judge
from udit.evaluation.judge_network import NAME
from udit.evaluation.trust import trust_of
from udit.files import cache_folder

SEED = 0
"""Of the judge: the same one for all runs on the same data, so that their scores can be compared."""
IMAGES_PER_ROUND = 1000
"""Images of the judge part that take ``evaluation.judge_steps`` training steps."""
MIN_ROUNDS, MAX_ROUNDS = 2 / 3, 8

logger = logging.getLogger(__name__)


def judge_of(source: Source, parts: Parts, steps: int, path: Path | None, *, mirrored: bool = False) -> Judge:
    """The judge of a data set, which has been asked about the real test images.

    It is trained once for the same images, steps and version: other runs find it in the user's cache folder. What is
    found there or in the run's folder is used only if it matches its own digest and was trained on just these images. A
    judge of an older version stays beside the new one.

    Args:
        source: the data set.
        parts: its split: ``judge`` trains the judge, ``test`` says how far it can be believed.
        steps: ``evaluation.judge_steps``.
        path: the run's own copy; None keeps none.
        mirrored: whether the generator's training images are mirrored.
    """
    origin, shared = _origin(source, parts, steps, mirrored)
    found = _kept(path, origin)
    judge = found or _kept(shared, origin)
    if judge is None:
        judge = _trained(source, parts.judge, steps_for(steps, len(parts.judge)), origin, mirrored=mirrored)
    known, judge.trust = judge.trust, trust_of(judge, source, parts)
    if path is not None and (found is None or known != judge.trust):
        judge.save(path)
    if found is None:
        with contextlib.suppress(OSError):  # a cache that cannot be written is not an error
            judge.save(shared)
    return judge


def kept_judge(source: Source, parts: Parts, steps: int, *, mirrored: bool = False) -> Judge | None:
    """The judge that ``judge_of`` has left in the user's cache folder; None where it has not.

    Args:
        source: see there, as are the next ones.
        parts: see there.
        steps: see there.
        mirrored: see there.
    """
    origin, shared = _origin(source, parts, steps, mirrored)
    return _kept(shared, origin)


def _origin(source: Source, parts: Parts, steps: int, mirrored: bool) -> tuple[str, Path]:
    """What a judge was trained on, and its file in the user's cache folder."""
    facts = {
        "data": source.fingerprint,
        "pictures": digest_of(parts.judge),
        "shape": source.image(int(parts.judge[0])).shape,
        "steps": steps_for(steps, len(parts.judge)),
        "seed": SEED,
        "mirrored": mirrored,
    }
    origin = json.dumps(facts)
    name = hashlib.sha256(f"{NAME} {origin}".encode()).hexdigest()
    return origin, cached(f"{name}.safetensors")


def cached(name: str) -> Path:
    """A file in the user's cache folder, of a judge or of what it said."""
    return cache_folder() / "judges" / name


def steps_for(steps: int, count: int) -> int:
    """Training steps of a judge: ``steps`` for each 1,000 of ``count`` images, from two thirds to 8 times ``steps``."""
    return max(1, round(steps * min(max(count / IMAGES_PER_ROUND, MIN_ROUNDS), MAX_ROUNDS)))


def _kept(path: Path | None, origin: str) -> Judge | None:
    """The judge in a file, if there is one of this version and origin; one of an older version is set aside."""
    if path is None or not path.exists():
        return None
    try:
        judge = Judge.load(path)
    except UserError as error:
        logger.warning("training a new judge: %s", error)
        return None
    if judge.name != NAME:
        logger.info("%s is of an older version, %s; it is kept as %s.safetensors", path, judge.name, judge.name)
        judge.save(path.with_name(f"{judge.name}.safetensors"))
        return None
    return judge if judge.origin == origin else None


def _trained(source: Source, part: Labels, steps: int, origin: str, *, mirrored: bool) -> Judge:
    num_classes = int(source.labels.max()) + 1
    images = ImageSet.of_source(source, part)
    return train_judge(
        images, source.labels[part], num_classes, steps=steps, seed=SEED, mirrored=mirrored, origin=origin
    )
