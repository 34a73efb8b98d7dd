"""Classifier-free guidance (Ho & Salimans 2022) as a denoiser around a denoiser; samplers do not know of it.

The guided prediction is u + w (c - u), of the conditional prediction c, the null prediction u and the guidance scale w.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from udit.diffusion.denoiser import Backbone, Denoiser, Prediction, null_labels
from udit.diffusion.schedule import Schedule
from udit.errors import UserError


def guide(cond: Tensor, uncond: Tensor, guidance: float | Tensor, channels: int | None = None) -> Tensor:
    """u + w (c - u) on the first ``channels`` channels (all if None); the others stay conditional. [B, C, H, W]."""
    guided = uncond + guidance * (cond - uncond)
    return guided if channels is None else torch.cat([guided[:, :channels], cond[:, channels:]], dim=1)


@dataclass(frozen=True)
class Guided:
    """A denoiser guided towards its labels; called like the denoiser it wraps.

    Attributes:
        denoiser: must have a null label, unless ``null`` takes its place.
        guidance: w of u + w (c - u); 1 means no guidance.
        interval: times as fractions, 0 (data) to 1 (noise), between which guidance acts, ends included (Kynkäänniemi et
            al. 2024).
        channels: guides only the first so many prediction channels; 3 is the published DiT and U-DiT protocol.
        null: the null condition, of one image's shape, for models that take vectors, e.g. a text encoder's output for
            the empty text.
    """

    denoiser: Denoiser
    guidance: float
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    null: Tensor | None = None

    def __post_init__(self) -> None:
        if self.denoiser.null_label is not None and self.null is not None:
            raise UserError("the model has a null label and was handed a null condition too; leave null out")
        if self.denoiser.null_label is None and self.null is None:
            raise UserError(
                f"guidance {self.guidance:g} needs a null label to compare with and the model has none; use guidance 1"
            )

    @property
    def schedule(self) -> Schedule:
        """The wrapped denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """As ``Denoiser``; the variance comes from the conditional pass."""
        fraction = self.schedule.fraction(t)
        active = (fraction >= self.interval[0]) & (fraction <= self.interval[1])
        if y is None or self.guidance == 1 or not bool(active.any()):
            return self.denoiser(x_t, t, y)
        cond, uncond, variance = self.halves(x_t, t, y)
        guidance = torch.where(active, self.guidance, 1.0).to(cond.dtype).view(-1, *[1] * (cond.ndim - 1))
        return self.denoiser.decode(guide(cond, uncond, guidance, self.channels), variance, x_t, t)

    def halves(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The conditional and the null prediction, in one batch of 2 B, and the conditional variance."""
        labels = torch.cat([y, self._null_like(y)])
        prediction, variance = self.denoiser.raw(torch.cat([x_t, x_t]), torch.cat([t, t]), labels)
        cond, uncond = prediction.chunk(2)
        return cond, uncond, None if variance is None else variance.chunk(2)[0]

    def _null_like(self, y: Tensor) -> Tensor:
        if self.null is None:
            assert self.denoiser.null_label is not None
            return null_labels(y, self.denoiser.null_label)
        if self.null.shape != y.shape[1:]:
            raise UserError(
                f"the null condition is {list(self.null.shape)} and an image's is {list(y.shape[1:])}; the shapes must "
                "match"
            )
        return self.null.to(y).expand_as(y)

    def network_time(self, t: Tensor) -> Tensor:
        """As the wrapped denoiser."""
        return self.denoiser.network_time(t)

    def respaced(self, sections: int | str) -> Guided:
        """The same on a part of the schedule's steps."""
        return dataclasses.replace(self, denoiser=self.denoiser.respaced(sections))

    def with_network(self, change: Callable[[Backbone], Backbone]) -> Guided:
        """The same with the innermost network changed."""
        return dataclasses.replace(self, denoiser=self.denoiser.with_network(change))

    def check_labels(self, y: Tensor | None, batch: int | None = None) -> None:
        """As the wrapped denoiser."""
        self.denoiser.check_labels(y, batch)


AnyDenoiser = Denoiser | Guided
"""What samplers take."""
