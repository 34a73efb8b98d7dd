"""``Denoiser``: a network, a noising process and what the one predicts on the other, called for (x0, eps)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from udit.diffusion.schedule import Schedule, TimeUnit, alike
from udit.diffusion.targets import Target, decode
from udit.errors import UserError


class Backbone(Protocol):
    """A network: x [B, C, H, W], t [B] in its own unit, y [B] int64 or None (= null) -> [B, C_out, H, W]."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None, /) -> Tensor:
        """The raw prediction; learned variance is in the channels behind it."""


@runtime_checkable
class WrappedBackbone(Protocol):
    """A backbone around a network that has another unit of time, as ``edm.Preconditioned``."""

    def inner_time(self, t: Tensor, /) -> Tensor:
        """t [B] of this backbone in the network's unit."""

    def rewrapped(self, change: Callable[[Backbone], Backbone], /) -> Backbone:
        """The same around the changed network."""


@dataclass(frozen=True)
class Prediction:
    """A prediction as its two ends: x_t = alpha x0 + sigma eps."""

    x0: Tensor
    eps: Tensor
    variance: Tensor | None
    """Learned-range fraction in about [-1, 1] (Nichol & Dhariwal 2021), where the network has it."""


@dataclass(frozen=True)
class Denoiser:
    """A backbone, a schedule and what the one predicts on the other.

    Attributes:
        backbone: the network.
        schedule: the noising process, which decides what t is.
        target: what the first half (all, without learned variance) of the output means.
        learn_sigma: whether the output's second half is the variance fraction.
        time: the network's unit of t.
        null_label: the label of "no class"; None if there is none.
        num_classes: labels run from 0 to this; 0 is unconditional.
        reversed_flow: whether the network has the opposite convention of flow, as SiT (Ma et al. 2024): it gets
            1 - t, which is 0 at noise and 1 at data, and predicts x0 - eps, or x0. All around the network keeps the
            library's convention.
    """

    backbone: Backbone
    schedule: Schedule
    target: Target = "eps"
    learn_sigma: bool = False
    time: TimeUnit = "index"
    null_label: int | None = None
    num_classes: int = 0
    reversed_flow: bool = False

    def __post_init__(self) -> None:
        if self.reversed_flow and not (self.schedule.process.reversible and self.target in ("flow", "gvp", "x0")):
            raise UserError("the network predicts a reversed flow, as SiT does; use it with diffusion.kind=flow")

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """x_t [B, C, H, W], t [B] in the schedule's unit, y [B] int64 or None -> Prediction."""
        return self.decode(*self.raw(x_t, t, y), x_t, t)

    def raw(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The network's prediction and variance, each [B, C, H, W]."""
        output = self.backbone(x_t, self._backbone_time(t), y)
        if self.reversed_flow:
            return output if self.target == "x0" else -output, None
        if not self.learn_sigma:
            return output, None
        prediction, variance = output.chunk(2, dim=1)
        return prediction, variance

    def _backbone_time(self, t: Tensor) -> Tensor:
        return alike(t, lambda t: self.schedule.network_time(1 - t if self.reversed_flow else t, self.time))

    def network_time(self, t: Tensor) -> Tensor:
        """The time that the innermost network gets at t [B]."""
        time = self._backbone_time(t)
        return self.backbone.inner_time(time) if isinstance(self.backbone, WrappedBackbone) else time

    def decode(self, prediction: Tensor, variance: Tensor | None, x_t: Tensor, t: Tensor) -> Prediction:
        """A raw prediction as (x0, eps), in float32 at least."""
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        x0, eps = decode(self.target, prediction.to(alpha.dtype), x_t, alpha, sigma)
        return Prediction(x0, eps, variance)

    def respaced(self, sections: int | str) -> Denoiser:
        """The same denoiser on a part of its schedule's steps.

        Raises:
            UserError: the schedule is continuous, or cannot be split so.
        """
        return dataclasses.replace(self, schedule=self.schedule.respaced(sections))

    def with_network(self, change: Callable[[Backbone], Backbone]) -> Denoiser:
        """The same denoiser with its innermost network changed."""
        inner = self.backbone
        changed = inner.rewrapped(change) if isinstance(inner, WrappedBackbone) else change(inner)
        return dataclasses.replace(self, backbone=changed)

    def check_labels(self, y: Tensor | None, batch: int | None = None) -> None:
        """Refuses labels that the model does not have; conditions of floats are the network's to check.

        Args:
            y: [B] int64 labels, the null label among them; or float conditions or shares of labels, or None.
            batch: B, where it is known.

        Raises:
            UserError: no tensor, another number of labels, one out of range, or any for an unconditional model.
        """
        if y is None:
            return
        if not isinstance(y, Tensor):
            raise UserError(f"y is {y!r}; give a tensor of class numbers, e.g. torch.tensor([1, 2])")
        if batch is not None and (y.ndim == 0 or len(y) != batch):
            raise UserError(f"y is {list(y.shape)} for {batch} images; give one label for each, [{batch}]")
        if y.is_floating_point():
            return
        if not self.num_classes:
            raise UserError("labels were given to an unconditional model (num_classes 0); leave them out")
        top = self.num_classes - (self.null_label is None)
        bad = y[(y < 0) | (y > top)]
        if bad.numel():
            raise UserError(f"label {int(bad[0])} is out of range; the model knows 0 to {self.num_classes - 1}")


def mix(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) noise for x0 and noise [B, C, H, W] and t [B]."""
    alpha, sigma = schedule.alpha_sigma(t, x0)
    return alpha * x0 + sigma * noise


def null_labels(y: Tensor, null_label: int) -> Tensor:
    """Null labels of y's shape; where y is shares of labels [B, K], the null label's whole."""
    if not y.is_floating_point():
        return torch.full_like(y, null_label)
    whole = torch.zeros_like(y)
    whole[:, null_label] = 1
    return whole
