"""A training loss with the random numbers that it takes. Every function can be called from a loop of one's own.

The loss itself is the noising process's (``Schedule.loss``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from udit import rng
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Losses:
    """Per-sample losses [B]; ``loss`` is what to average and differentiate."""

    loss: Tensor
    mse: Tensor
    vb: Tensor | None = None
    """Variational bound term in bits per dimension, where the variance is learned."""


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
    """

    seed: int
    label_dropout: float = 0.0
    levels: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, labels: Tensor, positions: Sequence[int], null: Tensor | None = None
    ) -> Losses:
        """Per-sample losses; every random number is keyed by (seed, position in the run).

        Args:
            denoiser: around the network in training.
            x0: [B, C, H, W] what the network is to generate, on the network's device.
            labels: [B] int64 on the CPU, unused by an unconditional model; or vectors [B, ...] for a model of these.
            positions: [B] places in the run's stream of samples.
            null: of vectors, the null condition [...], e.g. that of the empty text; None drops none.
        """
        device = x0.device
        keys = [(position,) for position in positions]
        draws = draw(denoiser.schedule, x0.shape[1:], self.seed, "train", keys, self.levels)
        y = None
        if labels.is_floating_point():
            y = labels if null is None else drop_vectors(labels, null, self.label_dropout, draws.uniform)
            y = y.to(device)
        elif denoiser.num_classes:
            y = labels
            if self.label_dropout:
                assert denoiser.null_label is not None, "the run's rules refuse to drop labels without a null label"
                y = drop_labels(y, denoiser.null_label, self.label_dropout, draws.uniform)
            y = y.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            return denoiser.schedule.loss(denoiser, x0, draws.t.to(device), draws.noise.to(device), y)
