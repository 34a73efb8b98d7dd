"""The likelihood of pixels under a normal distribution, as DDPM's bound ends with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
