"""A training loss with the random numbers that it takes. Every function can be called from a loop of one's own.

The loss itself is the noising process's (``Schedule.loss``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from udit import rng
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Losses:
    """Per-sample losses [B]; ``total`` is what to average and differentiate."""

    loss: Tensor
    mse: Tensor
    vb: Tensor | None = None
    """Variational bound term in bits per dimension, where the variance is learned."""
    align: Tensor | None = None
    """What aligns features with a vision model's, where a training does; it is not part of ``loss``."""

    @property
    def total(self) -> Tensor:
        """[B], what to average and differentiate: ``loss``, and ``align`` where there is one."""
        return self.loss if self.align is None else self.loss + self.align

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Losses:
        """The same with each term changed, e.g. detached from what made it."""
        vb, align = (None if x is None else change(x) for x in (self.vb, self.align))
        return Losses(change(self.loss), change(self.mse), vb, align)

    @property
    def terms(self) -> list[Tensor]:
        """Those that are there."""
        return [x for x in (self.loss, self.mse, self.vb, self.align) if x is not None]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch."""

    t: Tensor
    """[B] training times in the schedule's unit."""
    noise: Tensor
    """[B, C, H, W] standard normal."""
    uniform: Tensor
    """[B, K] in [0, 1): the label of a sample (or of one level of the U) is dropped where this is below the rate."""


def draw(
    schedule: Schedule, shape: Sequence[int], seed: int, purpose: str, keys: Sequence[Sequence[int]], levels: int = 1
) -> Draws:
    """Times, noise and dropout numbers, from one generator per sample.

    Args:
        schedule: decides the times.
        shape: (C, H, W) of one sample.
        seed: the run's.
        purpose: names the stream, e.g. ``"train"``.
        keys: one key per sample, e.g. (step, position in the global batch).
        levels: K, numbers drawn for label dropout.
    """
    generators = [rng.generator(seed, purpose, *key) for key in keys]
    return Draws(
        t=torch.stack([schedule.draw(g) for g in generators]),
        uniform=torch.stack([torch.rand(levels, generator=g) for g in generators]),
        noise=torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]),
    )


def drop_labels(y: Tensor, null_label: int, rate: float, uniform: Tensor) -> Tensor:
    """Labels with some replaced by the null label, for classifier-free guidance (Ho & Salimans 2022, Alg. 1).

    Args:
        y: [B] int64.
        null_label: what replaces them.
        rate: fraction dropped, 0 to 1.
        uniform: [B] or [B, 1] numbers: one decision per sample; or [B, K]: one per level, as the U-DiT release draws
            them (then only 0.1 % of the labels are dropped at all three levels at once).

    Returns:
        [B], or [B, K] for K > 1.
    """
    columns = uniform.view(len(y), -1)
    dropped = torch.where(columns < rate, null_label, y[:, None])
    return dropped[:, 0] if columns.shape[1] == 1 else dropped


def drop_vectors(y: Tensor, null: Tensor, rate: float, uniform: Tensor) -> Tensor:
    """As ``drop_labels``, of conditions that are vectors [B, ...]: some are replaced by the null condition [...]."""
    dropped = uniform[:, 0] < rate
    return torch.where(dropped.view(-1, *[1] * (y.ndim - 1)), null, y)


@dataclass(frozen=True)
class Objective:
    """A run's training loss: draws times, noise and dropped labels, then asks the process's loss.

    Attributes:
        seed: the run's.
        label_dropout: fraction of labels replaced by the null label, or of vectors by the null condition; unused by an
            unconditional model.
        levels: decisions per sample on dropping its label, see ``drop_labels``.
        precision: bfloat16 is autocast.
        batch_size: samples of a step, by which a position in the run says which step it is of.
    """

    seed: int
    label_dropout: float = 0.0
    levels: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 1

    def draws(self, schedule: Schedule, shape: Sequence[int], positions: Sequence[int]) -> Draws:
        """The random numbers of a batch of (C, H, W) at positions in the run's stream of samples."""
        return draw(schedule, shape, self.seed, "train", [(position,) for position in positions], self.levels)

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        labels: Tensor,
        positions: Sequence[int],
        draws: Draws | None = None,
        null: Tensor | None = None,
    ) -> Losses:
        """Per-sample losses; every random number is keyed by (seed, position in the run).

        Args:
            denoiser: around the network in training.
            x0: [B, C, H, W] what the network is to generate, on the network's device.
            labels: [B] int64, unused by an unconditional model; or vectors [B, ...] for a model of these.
            positions: [B] places in the run's stream of samples.
            draws: of these positions, on the network's device; drawn here if None.
            null: of vectors, the null condition [...], e.g. that of the empty text; None drops none.
        """
        device = x0.device
        denoiser = dataclasses.replace(denoiser, schedule=denoiser.schedule.at_step(positions[0] // self.batch_size))
        if draws is None:
            drawn = self.draws(denoiser.schedule, x0.shape[1:], positions)
            draws = Draws(drawn.t.to(device), drawn.noise.to(device), drawn.uniform.to(device))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.losses(denoiser, x0, labels.to(device), draws, None if null is None else null.to(device))

    def losses(
        self, denoiser: Denoiser, x0: Tensor, labels: Tensor, draws: Draws, null: Tensor | None = None
    ) -> Losses:
        """As the call, in the precision of the context; all on one device."""
        y = None
        if labels.is_floating_point():
            y = labels if null is None else drop_vectors(labels, null, self.label_dropout, draws.uniform)
        elif denoiser.num_classes:
            y = labels
            if self.label_dropout:
                assert denoiser.null_label is not None, "the run's rules refuse to drop labels without a null label"
                y = drop_labels(y, denoiser.null_label, self.label_dropout, draws.uniform)
        return denoiser.schedule.loss(denoiser, x0, draws.t, draws.noise, y)
