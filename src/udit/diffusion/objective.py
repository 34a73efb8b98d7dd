"""Training losses, and the draws they need. Every function can be called from a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udit import rng
from udit.diffusion.denoise import Denoiser, encode, mix
from udit.diffusion.schedule import DDPM, Schedule, gather


@dataclass(frozen=True)
class Losses:
    """Per-sample losses [B]; ``loss`` is what to average and differentiate."""

    loss: Tensor
    mse: Tensor
    vb: Tensor | None = None
    """Variational bound term in bits per dimension, where the variance is learned."""


Loss = Callable[[Denoiser, Tensor, Tensor, Tensor, Tensor | None], Losses]
"""(denoiser, x0, t, noise, y) -> losses, as ``flow_loss``."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch."""

    t: Tensor
    """[B] training times."""
    noise: Tensor
    """[B, C, H, W] standard normal."""
    uniform: Tensor
    """[B, K] in [0, 1): the label of a sample (or of one level of the U) is dropped where this is below the rate."""


def draw(
    schedule: Schedule, shape: Sequence[int], seed: int, purpose: str, keys: Sequence[Sequence[int]], levels: int = 1
) -> Draws:
    """Times, noise and dropout numbers, one generator a sample.

    Args:
        schedule: decides the times.
        shape: (C, H, W) of one sample.
        seed: the run's.
        purpose: names the stream, e.g. ``"train"``.
        keys: one key a sample, e.g. (step, position in the global batch).
        levels: K, numbers drawn for label dropout.
    """
    generators = [rng.generator(seed, purpose, *key) for key in keys]
    return Draws(
        t=torch.stack([schedule.draw(g) for g in generators]),
        uniform=torch.stack([torch.rand(levels, generator=g) for g in generators]),
        noise=torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]),
    )


def drop_labels(y: Tensor, null_label: int, rate: float, uniform: Tensor) -> Tensor:
    """Labels with some replaced by the null label, for classifier-free guidance.

    Args:
        y: [B] int64.
        null_label: what replaces them.
        rate: share dropped, 0 to 1.
        uniform: [B] or [B, 1] numbers: one decision a sample; or [B, K]: one a level, as the U-DiT release draws them
            (then only 0.1 % of the labels are dropped at all three levels at once).

    Returns:
        [B], or [B, K] for K > 1.
    """
    columns = uniform.view(len(y), -1)
    dropped = torch.where(columns < rate, null_label, y[:, None])
    return dropped[:, 0] if columns.shape[1] == 1 else dropped


def flow_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
    """Mean squared error of the network's own target: for flow matching, of the velocity eps - x0.

    Args:
        denoiser: a flow, v, x0 or eps denoiser without learned variance.
        x0: [B, C, H, W] data.
        t: [B] times of its schedule.
        noise: [B, C, H, W].
        y: [B] labels, some dropped, or None.
    """
    x_t = mix(denoiser.schedule, x0, noise, t)
    prediction, _ = denoiser.raw(x_t, t, y)
    alpha, sigma = denoiser.schedule.alpha_sigma(t, x0)
    error = prediction.float() - encode(denoiser.target, x0, noise, alpha, sigma)
    mse = error.square().mean(dim=(1, 2, 3))
    return Losses(mse, mse)


def hybrid_loss(denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Losses:
    """MSE of eps plus the variational bound for the learned variance only (Nichol & Dhariwal 2021, weight 1).

    Args:
        denoiser: an eps denoiser on a DDPM schedule; without learned variance this is the plain MSE.
        x0: [B, C, H, W] data; the bound at t = 0 takes it as 8-bit pixels scaled to [-1, 1].
        t: [B] int64 indices.
        noise: [B, C, H, W].
        y: [B] labels, some dropped, or None.
    """
    schedule = denoiser.schedule
    assert isinstance(schedule, DDPM), "the variational bound needs a discrete schedule"
    x_t = mix(schedule, x0, noise, t)
    prediction, variance = denoiser.raw(x_t, t, y)
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    mse = (noise - prediction).square().mean(dim=(1, 2, 3))
    if variance is None:
        return Losses(mse, mse)
    frozen = denoiser.decode(prediction.detach(), None, x_t, t)
    vb = _bound_term(schedule, frozen.x0, variance.to(prediction.dtype), x0, x_t, t)
    return Losses(mse + vb, mse, vb)


def ancestral_moments(schedule: DDPM, x0: Tensor, variance: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of p(x_{t-1} | x_t) with a learned-range variance."""
    of_x0, of_xt = (gather(table, t, x_t) for table in schedule.posterior_coefficients)
    smallest = gather(schedule.posterior_log_variance, t, x_t)
    largest = gather(np.log(schedule.betas), t, x_t)
    share = (variance + 1) / 2
    return of_x0 * x0 + of_xt * x_t, share * largest + (1 - share) * smallest


def _bound_term(schedule: DDPM, pred_x0: Tensor, variance: Tensor, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """KL(q(x_{t-1} | x_t, x0) || p) in bits per dimension, or at t = 0 the likelihood of 8-bit pixels; [B]."""
    mean, log_variance = ancestral_moments(schedule, pred_x0, variance, x_t, t)
    of_x0, of_xt = (gather(table, t, x_t) for table in schedule.posterior_coefficients)
    true_mean, true_log = of_x0 * x0 + of_xt * x_t, gather(schedule.posterior_log_variance, t, x_t)
    kl = 0.5 * (
        log_variance
        - true_log
        - 1
        + (true_log - log_variance).exp()
        + (true_mean - mean).square() * (-log_variance).exp()
    )
    nll = -pixel_log_likelihood(x0, mean, 0.5 * log_variance)
    first = (t == 0).view(-1, *[1] * (x0.ndim - 1))
    return torch.where(first, nll, kl).mean(dim=(1, 2, 3)) / math.log(2)


def pixel_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit pixels in [-1, 1] under a discretised Gaussian, by ADM's tanh form of the normal CDF."""

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse = (-log_scale).exp()
    upper, lower = cdf(inverse * (x - mean + 1 / 255)), cdf(inverse * (x - mean - 1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    return torch.where(
        x < -0.999,
        upper.clamp(min=1e-12).log(),
        torch.where(x > 0.999, (1 - lower).clamp(min=1e-12).log(), inside),
    )
