"""What a network predicts, and the denoiser that turns it into (x0, eps)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from udit.diffusion.schedule import DDPM, EDM, Flow, Schedule, TimeUnit
from udit.errors import UserError

Target = Literal["eps", "x0", "v", "flow", "gvp"]
"""``flow`` and ``gvp`` are the velocity dx_t/dt on ``Flow``'s linear path and on its path of sines and cosines."""


class Backbone(Protocol):
    """A network: x [B, C, H, W], t [B] in its own unit, y [B] int64 or None (= null) -> [B, C_out, H, W]."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None, /) -> Tensor:
        """The raw prediction, the variance channels behind it where they are learned."""


@dataclass(frozen=True)
class Prediction:
    """A prediction as its two ends: x_t = alpha x0 + sigma eps."""

    x0: Tensor
    eps: Tensor
    variance: Tensor | None
    """Learned-range fraction in about [-1, 1] (Nichol & Dhariwal 2021), where the network has it."""


def encode(target: Target, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network with this target should have said."""
    if target == "eps":
        return eps
    if target == "x0":
        return x0
    if target == "flow":
        return eps - x0
    v = alpha * eps - sigma * x0
    return v if target == "v" else math.pi / 2 * v


def decode(target: Target, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, eps) of a network's output; the inverse of ``encode`` given x_t."""
    if target == "eps":
        return x_t / alpha - (sigma / alpha) * output, output
    if target == "x0":
        return output, (x_t - alpha * output) / sigma
    if target in ("v", "gvp"):
        output = output if target == "v" else output / (math.pi / 2)
        norm = alpha**2 + sigma**2
        return (alpha * x_t - sigma * output) / norm, (sigma * x_t + alpha * output) / norm
    norm = alpha + sigma
    return (x_t - sigma * output) / norm, (x_t + alpha * output) / norm


@dataclass(frozen=True)
class Denoiser:
    """A backbone, a schedule and what the one predicts on the other.

    Attributes:
        backbone: the network.
        schedule: where t lives.
        target: what the first half (all, without learned variance) of the output means.
        learn_sigma: the output's second half is the variance fraction.
        time: the network's unit of t.
        null_label: the label of "no class"; None if there is none.
        num_classes: labels run from 0 to this; 0 is unconditional.
        reversed_flow: the network walks the flow path the other way, as SiT (Ma et al. 2024) does: told 1 - t, which is
            0 at noise and 1 at data, it predicts x0 - eps. All around the network keeps the library's convention.
    """

    backbone: Backbone
    schedule: DDPM | Flow | EDM
    target: Target = "eps"
    learn_sigma: bool = False
    time: TimeUnit = "index"
    null_label: int | None = None
    num_classes: int = 0
    reversed_flow: bool = False

    def __post_init__(self) -> None:
        if self.reversed_flow and not (isinstance(self.schedule, Flow) and self.target in ("flow", "gvp")):
            raise UserError("the network predicts a reversed flow, as SiT does; use it with diffusion.kind=flow")

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """x_t [B, C, H, W], t [B] as the schedule counts it, y [B] int64 or None -> Prediction."""
        return self.decode(*self.raw(x_t, t, y), x_t, t)

    def raw(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and variance, each [B, C, H, W]."""
        if self.reversed_flow:
            return -self.backbone(x_t, self.schedule.network_time(1 - t, self.time), y), None
        output = self.backbone(x_t, self.schedule.network_time(t, self.time), y)
        if not self.learn_sigma:
            return output, None
        prediction, variance = output.chunk(2, dim=1)
        return prediction, variance

    def decode(self, prediction: Tensor, variance: Tensor | None, x_t: Tensor, t: Tensor) -> Prediction:
        """A raw prediction as (x0, eps), in float32 at least."""
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        x0, eps = decode(self.target, prediction.to(alpha.dtype), x_t, alpha, sigma)
        return Prediction(x0, eps, variance)

    def respaced(self, sections: int | str) -> Denoiser:
        """The same denoiser on a part of its schedule's steps.

        Raises:
            UserError: the schedule is continuous.
        """
        if isinstance(self.schedule, Flow):
            raise UserError("a flow model has no discrete steps to respace; use flow-euler, flow-heun, dpmpp or unipc")
        if isinstance(self.schedule, EDM):
            raise UserError("an EDM model has no discrete steps to respace; use edm-heun or edm-euler")
        return dataclasses.replace(self, schedule=self.schedule.respaced(sections))

    def check_labels(self, y: Tensor | None) -> None:
        """Refuses labels the model does not have; conditions of floats are the network's to check.

        Raises:
            UserError: a label out of range, or any label for an unconditional model.
        """
        if y is None or y.is_floating_point():
            return
        if not self.num_classes:
            raise UserError("labels were given to an unconditional model (num_classes 0); leave them out")
        top = self.num_classes - (self.null_label is None)
        bad = y[(y < 0) | (y > top)]
        if bad.numel():
            raise UserError(f"label {int(bad[0])} is out of range; the model knows 0 to {self.num_classes - 1}")


def mix(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t of clean x0 and noise [B, C, H, W] at t [B]."""
    alpha, sigma = schedule.alpha_sigma(t, x0)
    return alpha * x0 + sigma * noise


def null_labels(y: Tensor, null_label: int) -> Tensor:
    """Null labels of y's shape."""
    return torch.full_like(y, null_label)
