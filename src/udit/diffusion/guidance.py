"""Classifier-free guidance (Ho & Salimans 2022) as a denoiser that wraps a denoiser; samplers never hear of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from udit.diffusion.denoise import Denoiser, Prediction, null_labels
from udit.diffusion.schedule import DDPM, EDM, Flow
from udit.errors import UserError


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor, channels: int | None = None) -> Tensor:
    """u + w (c - u) on the first ``channels`` channels (all if None); the others stay conditional. [B, C, H, W]."""
    guided = uncond + scale * (cond - uncond)
    return guided if channels is None else torch.cat([guided[:, :channels], cond[:, channels:]], dim=1)


@dataclass(frozen=True)
class Guided:
    """A denoiser steered towards its labels; called like the denoiser it wraps.

    Attributes:
        denoiser: must have a null label, unless ``null`` stands in for one.
        scale: w of u + w (c - u); 1 is none.
        interval: times as fractions, 0 (data) to 1 (noise), between which guidance acts, ends included.
        channels: guides only the first so many prediction channels; 3 is the published DiT and U-DiT protocol.
        null: the condition that says nothing, of one sample's shape, for models that take vectors, e.g. what a text
            encoder makes of the empty text.
    """

    denoiser: Denoiser
    scale: float
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    null: Tensor | None = None

    def __post_init__(self) -> None:
        if self.denoiser.null_label is not None and self.null is not None:
            raise UserError("the model has a null label and was handed a null condition too; leave null out")
        if self.denoiser.null_label is None and self.null is None:
            raise UserError(
                f"guidance {self.scale:g} needs a null label to compare with and the model has none; use guidance 1"
            )

    @property
    def schedule(self) -> DDPM | Flow | EDM:
        """The wrapped denoiser's schedule."""
        return self.denoiser.schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """As ``Denoiser``; the variance comes from the conditional pass."""
        fraction = self.schedule.fraction(t)
        active = (fraction >= self.interval[0]) & (fraction <= self.interval[1])
        if y is None or self.scale == 1 or not bool(active.any()):
            return self.denoiser(x_t, t, y)
        cond, uncond, variance = self.halves(x_t, t, y)
        scale = torch.where(active, self.scale, 1.0).to(cond.dtype).view(-1, *[1] * (cond.ndim - 1))
        return self.denoiser.decode(guide(cond, uncond, scale, self.channels), variance, x_t, t)

    def halves(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The conditional and the null prediction, in one batch, and the conditional variance."""
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
                f"the null condition is {list(self.null.shape)} and a sample's is {list(y.shape[1:])}; they are alike"
            )
        return self.null.to(y).expand_as(y)

    def respaced(self, sections: int | str) -> Guided:
        """The same on a part of the schedule's steps."""
        return dataclasses.replace(self, denoiser=self.denoiser.respaced(sections))

    def check_labels(self, y: Tensor | None) -> None:
        """As the wrapped denoiser."""
        self.denoiser.check_labels(y)
