"""What a network may be trained to predict, and the two functions that convert each target to and from (x0, eps).

Everywhere x_t = alpha x0 + sigma eps, with alpha and sigma broadcast over [B, C, H, W].
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Target = Literal["eps", "x0", "v", "flow", "gvp"]
"""``eps`` (Ho et al. 2020), ``x0``, ``v`` = alpha eps - sigma x0 (Salimans & Ho 2022), and the velocity dx_t/dt of flow
matching: ``flow`` on the linear path, ``gvp`` on the path of cosine and sine (Ma et al. 2024)."""


def encode(target: Target, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The value of a target for known x0 and eps [B, C, H, W]: what training compares the network's output with."""
    if target == "eps":
        return eps
    if target == "x0":
        return x0
    if target == "flow":
        return eps - x0
    v = alpha * eps - sigma * x0
    return v if target == "v" else math.pi / 2 * v


def decode(target: Target, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, eps) of a network's output, each [B, C, H, W]; the inverse of ``encode`` given x_t."""
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


def x0_per(target: Target, alpha: Tensor, sigma: Tensor) -> Tensor:
    """How far the decoded x0 moves where a target's value moves by 1, up to its sign."""
    if target == "eps":
        return sigma / alpha
    if target == "x0":
        return alpha.new_ones(alpha.shape)
    if target == "flow":
        return sigma / (alpha + sigma)
    scale = sigma / (alpha.square() + sigma.square())
    return scale if target == "v" else scale / (math.pi / 2)
