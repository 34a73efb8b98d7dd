"""``udit sample --quality``: three sampling settings of a model, tuned (``quality.json``) or by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from udit.diffusion.config import DiffusionConfig, SamplingConfig
from udit.diffusion.config import Level as Level
from udit.errors import RunError, UserError
from udit.record import Record
from udit.spec.base import Spec

FILE = "quality.json"
TUNED = "tuned"
"""Of a run: the model folder with the average of the weights for which the settings were found, if it is not the run's
own."""
LOSSES: dict[Level, float] = {"best": 0.02, "good": 0.10, "draft": 0.50}
"""How much worse a score may be than the best that was reached: the distance larger, the agreement smaller."""

Share = Annotated[float, Field(ge=0, le=1)]


class Scored(Spec):
    """One sampling setting and its scores."""

    sampling: SamplingConfig
    distance: NonNegativeFloat
    """Squared Fréchet distance of the judge's features to the training images."""
    distance_interval: tuple[float, float]
    """95 %, basic bootstrap."""
    agreement: Share
    """Images that the judge classifies as the requested class."""
    agreement_interval: tuple[float, float]
    """95 %, Wilson."""
    seconds: PositiveFloat
    """Per image, in batches of the size that the protocol names."""

    def within(self, loss: float, other: Scored) -> bool:
        """Whether this is worse than another by at most a share ``loss``, in distance and in agreement."""
        return self.distance <= (1 + loss) * other.distance and self.agreement >= (1 - loss) * other.agreement


class ScoredAverage(Spec):
    """Another average of the weights, of a run with ``training.posthoc_ema``, in one setting."""

    sigma_rel: float
    """Its length."""
    scored: Scored
    difference: tuple[float, float] | None
    """95 %, of its distance minus that of the run's own average, over the same seeds."""


class Quality(Record):
    """``quality.json``: what ``udit tune`` found."""

    format: Literal[1] = 1
    weights: str
    """Fingerprint of the network's weights."""
    step: PositiveInt | None
    """Of the checkpoint."""
    protocol: dict[str, Any]
    """Images, seeds, judge, reference, clock, machine."""
    warning: str | None = None
    """One line where the judge is so weak that the choice is little better than chance."""
    draft: Scored
    good: Scored
    best: Scored
    tried: tuple[Scored, ...]
    differences: tuple[tuple[float, float] | None, ...] = ()
    """95 %, of the distance of each of ``tried`` minus the least of them, over the same seeds; None: not compared."""
    sigma_rel: float | None = None
    """Length of the average that was better than the run's own, and lies in ``TUNED``; None where none was."""
    averages: tuple[ScoredAverage, ...] = ()

    def write(self, path: Path) -> None:
        """Writes it as JSON.

        Raises:
            RunError: it could not be written.
        """
        try:
            super().write(path)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; make room and tune again") from None

    @staticmethod
    def read(folder: Path) -> Quality | None:
        """The file in a model or run folder; None where there is none.

        Raises:
            UserError: it cannot be read.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return Quality.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            detail = " ".join(str(error).split())[:120]
            raise UserError(
                f"{path} cannot be used ({detail}); write it again with `udit tune`, or remove it"
            ) from None


def fastest(tried: Sequence[Scored], loss: float, best: Scored) -> Scored:
    """The fastest setting whose scores are within a loss of the best."""
    return min((each for each in tried if each.within(loss, best)), key=lambda each: each.seconds)


def default(level: Level, own: SamplingConfig, diffusion: DiffusionConfig) -> SamplingConfig:
    """The noising process's own setting for a level, guided as the model's own setting is."""
    sampler, steps = diffusion.quality[level]
    steps = min(steps, diffusion.max_steps or steps)
    return SamplingConfig().replace(sampler=sampler, steps=steps, **own.guidance_for(sampler))
