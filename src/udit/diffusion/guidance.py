"""Guidance as a denoiser around a denoiser; samplers do not know of it.

The conditional prediction c is compared with another one of the same x_t, u: that of the null label (classifier-free
guidance, Ho & Salimans 2022), or that of a weaker model for the same label (autoguidance, Karras et al. 2024, arXiv
2406.02507). ``combine`` has the rules that make the guided prediction of the two; the plain one is u + w (c - u), with
the guidance scale w.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.combine import CFG, CFGZero, GuidanceRun, Pair, Rule, rescaled
from udit.diffusion.combine import guide as guide
from udit.diffusion.denoiser import Backbone, Denoiser, Prediction, null_labels
from udit.diffusion.schedule import Schedule, known, told
from udit.diffusion.targets import decode
from udit.errors import UserError


@dataclass(frozen=True)
class Guided:
    """A denoiser guided towards its labels; called like the denoiser it wraps.

    Attributes:
        denoiser: must have a null label, unless ``null`` or ``weak`` takes its place.
        guidance: w of u + w (c - u); 1 means no guidance.
        interval: times as fractions, 0 (data) to 1 (noise), between which guidance acts, ends included (Kynkäänniemi et
            al. 2024).
        channels: guides only the first so many prediction channels; 3 is the published DiT and U-DiT protocol.
        null: the null condition, of one image's shape, for models that take vectors, e.g. a text encoder's output for
            the empty text.
        rule: how the two predictions are combined.
        rescale: phi of ``combine.rescaled``; 0 leaves the guided prediction as it is.
        levels: noise levels sigma / alpha between which guidance acts, ends included; None is all.
        weak: autoguidance: a worse denoiser of the same process, whose prediction for the same labels is u.
        zero_init: evaluations at the start of a flow whose velocity is 0 (CFG-Zero*, Fan et al. 2025, Sec. 4.2).
        run: what the rule keeps between evaluations; ``sample`` gives every run its own. Without one, each call is like
            the first of a run.
    """

    denoiser: Denoiser
    guidance: float
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None
    null: Tensor | None = None
    rule: Rule = field(default=CFG(), kw_only=True)
    rescale: float = field(default=0.0, kw_only=True)
    levels: tuple[float, float] | None = field(default=None, kw_only=True)
    weak: Denoiser | None = field(default=None, kw_only=True)
    zero_init: int = field(default=0, kw_only=True)
    run: GuidanceRun | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.denoiser.null_label is not None and self.null is not None:
            raise UserError("the model has a null label and was handed a null condition too; leave null out")
        if self.weak is not None:
            self._check_weak(self.weak)
        elif self.denoiser.null_label is None and self.null is None:
            raise UserError(
                f"guidance {self.guidance:g} needs a null label to compare with and the model has none; use guidance "
                "1, or a weaker model (autoguide)"
            )
        if (isinstance(self.rule, CFGZero) or self.zero_init) and self.schedule.velocity is None:
            raise UserError(
                f"CFG-Zero* corrects the velocity of a flow and the model was trained with "
                f"{self.schedule.process.title}; use cfg or apg"
            )

    def _check_weak(self, weak: Denoiser) -> None:
        if self.null is not None:
            raise UserError("autoguidance compares with a weaker model for the same condition; leave null out")
        if isinstance(self.rule, CFGZero):
            raise UserError("CFG-Zero* corrects the null prediction, which autoguidance does not use; use cfg or apg")
        if weak.schedule.process is not self.schedule.process or weak.target != self.denoiser.target:
            raise UserError(
                f"the weaker model was trained with {weak.schedule.process.title} to predict {weak.target}, and the "
                f"model with {self.schedule.process.title} to predict {self.denoiser.target}; take one of the same "
                "process"
            )
        if not _noise_alike(weak.schedule, self.schedule):
            raise UserError(
                f"the weaker model was trained with {self.schedule.process.title} along other noise levels than the "
                "model; take one of the same process"
            )

    @property
    def schedule(self) -> Schedule:
        """The wrapped denoiser's schedule."""
        return self.denoiser.schedule

    def begun(self, calls: int = 0) -> Guided:
        """The same for one sampling run, of which so many evaluations are left out."""
        return dataclasses.replace(self, run=GuidanceRun(calls))

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """As ``Denoiser``; the variance comes from the conditional pass."""
        call = self.run.calls if self.run else 0
        if self.run:
            self.run.calls += 1
        if call < self.zero_init and y is not None and self.guidance != 1:
            return self._at_rest(x_t, t)
        return self.predict(x_t, t, y)

    def predict(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        """As ``__call__``, after the evaluations whose velocity is 0."""
        if (y is None and self.weak is None) or self.guidance == 1 or not bool(self._active(known(t)).any()):
            return self.denoiser(x_t, t, y)
        cond, other, variance = self.halves(x_t, t, y)
        guidance = torch.where(self._active(t), self.guidance, 1.0).to(cond.dtype).view(-1, *[1] * (cond.ndim - 1))
        guided = self._combined(cond[:, : self.channels], other[:, : self.channels], guidance, x_t, t)
        if self.channels is not None:
            guided = torch.cat([guided, cond[:, self.channels :].to(guided.dtype)], dim=1)
        return self.denoiser.decode(guided, variance, x_t, t)

    def _active(self, t: Tensor) -> Tensor:
        fraction = self.schedule.fraction(t)
        active = (fraction >= self.interval[0]) & (fraction <= self.interval[1])
        if self.levels is None:
            return active
        level = self.schedule.network_time(t, "sigma")
        return active & (level >= self.levels[0]) & (level <= self.levels[1])

    def _combined(self, cond: Tensor, other: Tensor, guidance: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        x_t = x_t[:, : self.channels]
        pair = Pair(cond, other, x_t, self.denoiser.target, self.schedule.velocity, alpha, sigma)
        guided = self.rule(pair, guidance, self.run)
        return rescaled(guided, cond, self.rescale) if self.rescale else guided

    def _at_rest(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction of velocity 0."""
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        x_t = x_t.to(alpha.dtype)
        assert self.schedule.velocity is not None, "checked above"
        return Prediction(*decode(self.schedule.velocity, torch.zeros_like(x_t), x_t, alpha, sigma), variance=None)

    def halves(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The conditional prediction, the one it is compared with, and the conditional variance.

        The null label's is computed in one batch of 2 B, a weaker model's in a pass of its own.
        """
        if self.weak is not None:
            cond, variance = self.denoiser.raw(x_t, t, y)
            return cond, self.weak.raw(x_t, t, y)[0], variance
        assert y is not None, "no label is guided from the null label"
        labels = torch.cat([y, self._null_like(y)])
        prediction, variance = self.denoiser.raw(torch.cat([x_t, x_t]), twice(t), labels)
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
        weak = self.weak and self.weak.respaced(sections)
        return dataclasses.replace(self, denoiser=self.denoiser.respaced(sections), weak=weak)

    def with_network(self, change: Callable[[Backbone], Backbone]) -> Guided:
        """The same with the innermost network changed; a weaker model's, too, by a call of its own."""
        weak = self.weak and self.weak.with_network(change)
        return dataclasses.replace(self, denoiser=self.denoiser.with_network(change), weak=weak)

    def check_labels(self, y: Tensor | None, batch: int | None = None) -> None:
        """As the wrapped denoiser."""
        self.denoiser.check_labels(y, batch)


def twice(t: Tensor) -> Tensor:
    """Times [B] for both halves of a batch, [2 B]."""
    host = known(t)
    return told(torch.cat([t, t]), None if host is t else host)


def _noise_alike(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules of one process have the same alpha and sigma."""
    betas = one.discrete_betas(), other.discrete_betas()
    if betas[0] is not None and betas[1] is not None:
        return np.array_equal(betas[0], betas[1])
    times = torch.linspace(0.1, 0.9, 5)
    pairs = zip(one.alpha_sigma(times, times), other.alpha_sigma(times, times), strict=True)
    return all(torch.equal(mine, its) for mine, its in pairs)


AnyDenoiser = Denoiser | Guided
"""What samplers take."""
