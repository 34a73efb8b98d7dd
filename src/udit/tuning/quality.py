"""``udit sample --quality``: three ways of drawing from a model, tuned (``quality.json``) or by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from udit.diffusion.config import DDPMConfig, DiffusionConfig, SamplingConfig
from udit.errors import RunError, UserError
from udit.spec.base import Spec

Level = Literal["draft", "good", "best"]
FILE = "quality.json"
LOSSES: dict[Level, float] = {"best": 0.02, "good": 0.10, "draft": 0.50}
"""By how much a score may fall behind the best one that was reached: the distance grow, the agreement fall."""
DEFAULTS: dict[str, dict[Level, tuple[str, int]]] = {
    "flow": {"draft": ("dpmpp", 6), "good": ("dpmpp", 12), "best": ("dpmpp", 30)},
    "ddpm": {"draft": ("dpmpp", 8), "good": ("dpmpp", 20), "best": ("ddim", 100)},
    "edm": {"draft": ("edm-heun", 9), "good": ("edm-heun", 19), "best": ("edm-heun", 39)},
}
"""Sampler and steps where nothing has been tuned, by kind of noising process."""

Share = Annotated[float, Field(ge=0, le=1)]


class Scored(Spec):
    """One way of drawing, and what it gave."""

    sampling: SamplingConfig
    distance: NonNegativeFloat
    """Squared Fréchet distance of the judge's features to the training pictures."""
    distance_interval: tuple[float, float]
    """95 %, basic bootstrap."""
    agreement: Share
    """Pictures that the judge takes for the class that was asked for."""
    agreement_interval: tuple[float, float]
    """95 %, Wilson."""
    seconds: PositiveFloat
    """Of one picture, in batches as the protocol says."""

    def within(self, loss: float, other: Scored) -> bool:
        """Whether this is at most by a share ``loss`` worse than another, in distance and in agreement."""
        return self.distance <= (1 + loss) * other.distance and self.agreement >= (1 - loss) * other.agreement


class Quality(Spec):
    """``quality.json``: what ``udit tune`` found."""

    format: Literal[1] = 1
    weights: str
    """Fingerprint of the network's weights."""
    step: PositiveInt | None
    """Of the checkpoint."""
    protocol: dict[str, Any]
    """Pictures, seeds, judge, reference, clock, machine."""
    draft: Scored
    good: Scored
    best: Scored
    tried: tuple[Scored, ...]

    def write(self, path: Path) -> None:
        """As every spec.

        Raises:
            RunError: it could not be written.
        """
        try:
            super().write(path)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}; make room and tune again") from None

    @staticmethod
    def read(folder: Path) -> Quality | None:
        """The one beside a model or a run; None where there is none.

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
            raise UserError(f"{path} cannot be used ({detail}); make it anew with `udit tune`, or remove it") from None


def fastest(tried: Sequence[Scored], loss: float, best: Scored) -> Scored:
    """The quickest way that is within a loss of the best one."""
    return min((each for each in tried if each.within(loss, best)), key=lambda each: each.seconds)


def default(level: Level, own: SamplingConfig, diffusion: DiffusionConfig) -> SamplingConfig:
    """The table's way for a model, guided as the model's own setting is."""
    sampler, steps = DEFAULTS[diffusion.kind][level]
    if isinstance(diffusion, DDPMConfig):
        steps = min(steps, diffusion.steps)
    return SamplingConfig().replace(
        sampler=sampler,
        steps=steps,
        guidance=own.guidance,
        guidance_channels=own.guidance_channels,
        guidance_interval=own.guidance_interval,
    )
