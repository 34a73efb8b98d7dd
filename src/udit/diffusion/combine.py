"""How a conditional prediction c and the one it is compared with, u, become the guided one.

Each rule works on what its paper defines it for, and returns the network's own kind of prediction:

- ``CFG`` (Ho & Salimans 2022): u + w (c - u), the same in x0, eps or velocity.
- ``APG`` (Sadat et al. 2024, arXiv 2410.02416, Alg. 1), in x0: with D = x0_c - x0_u

      D' = D + beta D'_before                          reverse momentum, beta < 0; D'_before of the evaluation before
      D'' = min(1, r / |D'|) D'                        a bound on the norm
      x0 = x0_c + (w - 1) (D''_orthogonal + eta D''_parallel)        orthogonal and parallel to x0_c

- ``CFGZero`` (Fan et al. 2025, arXiv 2503.18886, Eqs. 8 and 9), in the velocity of a flow:

      v = (1 - w) s v_u + w v_c        s = <v_c, v_u> / |v_u|^2

- ``rescaled`` (Lin et al. 2023, arXiv 2305.08891, Sec. 3.4) comes after any of them, in the network's own prediction.

Norms and inner products are those of one image, of all guided channels, and are summed in float64, so that they do not
depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from udit.diffusion.settings import SamplingConfig
from udit.diffusion.targets import Target, decode, encode


@dataclass(frozen=True)
class Pair:
    """Two predictions of one network's kind at the same x_t."""

    cond: Tensor
    """[B, C, H, W] c."""
    other: Tensor
    """[B, C, H, W] u: the null label's, or a weaker model's."""
    x_t: Tensor
    """[B, C, H, W]."""
    target: Target
    """What both predict."""
    velocity: Target | None
    """dx_t/dt of the process, where it is a flow."""
    alpha: Tensor
    """[B, 1, 1, 1]."""
    sigma: Tensor
    """[B, 1, 1, 1]."""

    def x0(self) -> Tensor:
        """x0 of c."""
        return decode(self.target, self.cond.to(self.alpha.dtype), self.x_t, self.alpha, self.sigma)[0]

    def x0_difference(self) -> Tensor:
        """x0 of c minus that of u, without the cancellation that computing both would bring."""
        difference = (self.cond - self.other).to(self.alpha.dtype)
        return decode(self.target, difference, torch.zeros_like(difference), self.alpha, self.sigma)[0]

    def of_x0_difference(self, difference: Tensor) -> Tensor:
        """A difference of x0 at the same x_t as one of the network's predictions."""
        return encode(self.target, difference, -(self.alpha / self.sigma) * difference, self.alpha, self.sigma)

    def velocities(self) -> tuple[Tensor, Tensor]:
        """The velocities of c and u."""
        return self._as_velocity(self.cond), self._as_velocity(self.other)

    def of_velocity(self, velocity: Tensor) -> Tensor:
        """A velocity as the network's prediction."""
        if self.target == self.velocity:
            return velocity
        assert self.velocity is not None, "asked of flows alone"
        ends = decode(self.velocity, velocity, self.x_t, self.alpha, self.sigma)
        return encode(self.target, *ends, self.alpha, self.sigma)

    def _as_velocity(self, prediction: Tensor) -> Tensor:
        prediction = prediction.to(self.alpha.dtype)
        if self.target == self.velocity:
            return prediction
        assert self.velocity is not None, "asked of flows alone"
        ends = decode(self.target, prediction, self.x_t, self.alpha, self.sigma)
        return encode(self.velocity, *ends, self.alpha, self.sigma)


@dataclass
class GuidanceRun:
    """What guidance keeps from one evaluation to the next; of one batch's sampling run, never longer."""

    calls: int = 0
    """Evaluations so far."""
    difference: Tensor | None = None
    """[B, C, H, W] APG's D' of the evaluation before."""


class Rule(Protocol):
    """Combines two predictions."""

    def __call__(self, pair: Pair, guidance: Tensor, run: GuidanceRun | None) -> Tensor:
        """The guided prediction, of the network's kind.

        Args:
            pair: c and u.
            guidance: [B, 1, 1, 1] w; 1 gives c.
            run: the sampling run; None for a call outside of one, which is like the first of a run.
        """


def guide(cond: Tensor, uncond: Tensor, guidance: float | Tensor, channels: int | None = None) -> Tensor:
    """u + w (c - u) on the first ``channels`` channels (all if None); the others stay conditional. [B, C, H, W]."""
    guided = uncond + guidance * (cond - uncond)
    return guided if channels is None else torch.cat([guided[:, :channels], cond[:, channels:]], dim=1)


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance."""

    def __call__(self, pair: Pair, guidance: Tensor, run: GuidanceRun | None) -> Tensor:
        """As ``Rule``."""
        return guide(pair.cond, pair.other, guidance)


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance.

    Attributes:
        eta: share of the part parallel to x0, which saturates colours; 1 keeps it whole.
        norm: r, the largest norm of the difference of an image's x0; None bounds nothing.
        momentum: beta; 0 is none.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = -0.5

    def __call__(self, pair: Pair, guidance: Tensor, run: GuidanceRun | None) -> Tensor:
        """As ``Rule``."""
        difference = pair.x0_difference()
        if self.momentum and run is not None:
            if run.difference is not None:
                difference = difference + self.momentum * run.difference
            run.difference = difference
        if self.norm is not None:
            length = inner(difference, difference).sqrt()
            difference = difference * (self.norm / length.clamp_min(self.norm)).to(difference.dtype)
        x0 = pair.x0()
        parallel = _ratio(inner(difference, x0), inner(x0, x0)).to(x0.dtype) * x0
        update = difference - parallel + self.eta * parallel
        return pair.cond + (guidance - 1) * pair.of_x0_difference(update)


@dataclass(frozen=True)
class CFGZero:
    """CFG-Zero*'s optimised scale of the null velocity; its zero-init is ``Guided.zero_init``."""

    def __call__(self, pair: Pair, guidance: Tensor, run: GuidanceRun | None) -> Tensor:
        """As ``Rule``."""
        cond, other = pair.velocities()
        scale = _ratio(inner(cond, other), inner(other, other)).to(other.dtype)
        return pair.of_velocity(guide(cond, scale * other, guidance))


def rule_of(sampling: SamplingConfig) -> Rule:
    """The rule of guidance of a setting."""
    if sampling.guidance_kind == "apg":
        return APG(sampling.guidance_eta, sampling.guidance_norm, sampling.guidance_momentum)
    return CFGZero() if sampling.guidance_kind == "cfg-zero" else CFG()


def rescaled(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """phi (std(c) / std(g)) g + (1 - phi) g for a guided prediction g, with the standard deviations of each image.

    Args:
        guided: [B, C, H, W] g.
        cond: [B, C, H, W] c.
        share: phi, 0 to 1.
    """
    ratio = _ratio(_std(cond), _std(guided), otherwise=1.0).to(guided.dtype)
    return share * (ratio * guided) + (1 - share) * guided


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of images [B, ...], float64 [B, 1, ...]."""
    return (a.double() * b.double()).flatten(1).sum(dim=1).view(-1, *[1] * (a.ndim - 1))


def _std(x: Tensor) -> Tensor:
    return x.double().flatten(1).std(dim=1, correction=0).view(-1, *[1] * (x.ndim - 1))


def _ratio(above: Tensor, below: Tensor, otherwise: float = 0.0) -> Tensor:
    """above / below, and ``otherwise`` where below is 0."""
    return torch.where(below == 0, otherwise, above / torch.where(below == 0, 1.0, below))
