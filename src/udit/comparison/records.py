"""Records of a comparison: what is kept of each member once it is finished. Small JSON files, which can be committed.

``OUT/records/SYSTEM-BUDGET-seedN-DIGEST.json`` is a ``Member``; the digest is of all that decides it, so that a changed
comparison finds what is still true and trains the rest. ``OUT/rates/SYSTEM-BUDGET-DIGEST.json`` is a ``RateChoice``,
``OUT/sizes/SYSTEM-BUDGET-DIGEST.json`` a ``Sized``, ``OUT/models/SYSTEM-BUDGET-seedN-DIGEST`` the model folder of a
member's last score (``udit.load`` reads it), and ``OUT/failures/....json`` a ``Failure``, until it is tried again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from udit.comparison.config import Yardstick
from udit.errors import UserError
from udit.record import Record
from udit.spec.base import Seed, Spec, parse


class Score(Spec):
    """A number of an evaluator for one set of samples."""

    value: float
    low: float
    """Lower end of the 95 % interval of these samples; it leaves out how much trainings differ between seeds."""
    high: float
    """Upper end."""


class Point(Spec):
    """A member's scores at one fraction of its training."""

    fraction: PositiveFloat
    """Of the whole training, as the comparison asks for it."""
    step: PositiveInt
    """Optimiser steps done, the branch's included."""
    macs: NonNegativeFloat
    """Multiply-accumulates of the training until then: three forwards of each image."""
    seconds: NonNegativeFloat
    """Of the training until then: steps times the median step; scores, checkpoints and pauses are not in it."""
    val_loss: float | None
    """Of held-out images with the averaged weights."""
    weights: str
    """Fingerprint of the weights that were scored."""
    scores: dict[str, Score]
    """By name: ``distance`` (squared Fréchet distance of the judge's features, not FID; lower is better),
    ``agreement`` (share of images of the class that was asked for), ``precision`` and ``recall`` (higher is better)."""


class EvaluatorFacts(Spec):
    """Who scored, and against what; equal over all members that are compared."""

    name: str
    sha256: str
    """Of its weights."""
    reference_sha256: str
    """Of the images that samples are compared with."""
    real: dict[str, float]
    """What real images get, by the name of a score, where that is known."""


class Sized(Record):
    """A system of the size that meets a budget."""

    system: str
    budget: Yardstick
    amount: PositiveFloat
    model: dict[str, Any]
    """The complete ``model`` section of a run."""
    measured: PositiveFloat
    """What the budget counts, of this model: within 2 % of ``amount``."""
    macs: PositiveInt
    """Of a forward of one sample, fused."""
    parameters: PositiveInt
    """Of the fused network."""
    changed: str
    """Width, heads, depths and FFN ratio in words, with those of the system it was scaled from."""

    @property
    def error(self) -> float:
        """How far from the budget, as a share of it."""
        return self.measured / self.amount - 1


class RateTried(Spec):
    """A learning rate and the loss of held-out images after a short training; None where it failed."""

    lr: PositiveFloat
    loss: float | None


class RateChoice(Record):
    """The learning rate of a system, of the comparison's grid."""

    lr: PositiveFloat
    steps: PositiveInt
    """Of each short training."""
    tried: tuple[RateTried, ...]
    edge: bool
    """Whether it is the lowest or the highest of the grid, so that a better one may lie beyond."""


class Member(Record):
    """A finished member: one system of one size, trained with one seed and scored at all fractions."""

    format: Literal[1] = 1
    comparison: str
    """Name of the comparison."""
    system: str
    seed: Seed
    size: Sized
    lr: PositiveFloat
    rate: RateChoice | None
    """How the rate was chosen; None where it is the recipe's."""
    steps: PositiveInt
    batch_size: PositiveInt
    step_seconds: NonNegativeFloat
    """Median of a training step."""
    clock: Literal["processor", "wall"]
    """Processor time of the one thread that did all the work, which other programs do not disturb, or wall time."""
    points: tuple[Point, ...]
    sample_ids_sha256: str
    """Of the numbers of training images in their order (of a long training the first million and the last step's);
    equal over systems of one seed."""
    noise_sha256: str
    """Of times, noise and label dropout of the first and the last step; equal over systems of one seed."""
    evaluator: EvaluatorFacts
    protocol: dict[str, Any]
    """All else that members must share to be on one axis: the run without model, seed, rate and folder."""
    machine: str
    versions: str
    date: str
    model_folder: str
    """Where the model of the last score is, relative to the comparison's folder."""
    images: str
    """The first samples of the last score as a PNG in base64: one row per class, in the order of the labels."""


class Failure(Record):
    """Why a member is not finished, in one line."""

    member: str
    error: str


def read_member(path: Path) -> Member:
    """A finished member.

    Raises:
        UserError: the file is damaged or no member.
    """
    import json

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:100]}); remove it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no record of a member; remove it")
    return parse(Member, values, where=path)


def read_members(folder: Path) -> list[Member]:
    """All finished members of a comparison, by the names of their files.

    Args:
        folder: of the comparison, or its ``records``.

    Raises:
        UserError: there are none, or one is damaged.
    """
    records = folder / "records" if (folder / "records").is_dir() else folder
    found = [read_member(path) for path in sorted(records.glob("*.json"))]
    if not found:
        raise UserError(f"{folder} has no finished member of a comparison; `udit compare` writes them")
    return found
