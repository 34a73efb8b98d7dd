"""Parity of the diffusion tower: schedule, loss and samplers around a closed-form denoiser."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from udit.diffusion.ddpm import DDIM, DDPM, Ancestral, hybrid_loss
from udit.diffusion.denoiser import Denoiser
from udit.diffusion.objective import Losses
from udit.diffusion.sample import Sampler, sample
from udit.parity import Check, Disagreement, close, exact, seed_of, whole

SHAPE = (2, 4, 8, 8)


def backbone(x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """The closed form in place of a network: eps = tanh(...), variance = sin(...), both of x and t / 1000."""
    s = (t.float() / 1000).view(-1, 1, 1, 1)
    eps = torch.tanh(0.9 * x + 0.3 * x.roll(1, dims=-1) - 0.2 * s)
    return torch.cat([eps, torch.sin(2 * x + s)], dim=1)


def check(arrays: dict[str, np.ndarray]) -> list[Check]:
    """Compares every array of a diffusion file.

    Args:
        arrays: the file's.

    Returns:
        One check an array.
    """
    seed = seed_of("loss_x0_seed", arrays["loss_x0_seed"])
    schedule = DDPM.linear(1000)
    denoiser = Denoiser(backbone, schedule, learn_sigma=True)
    checks: list[Check] = []
    for name, stored in arrays.items():
        if name in ("loss_x0_seed", "loss_t"):
            continue
        if name in ("loss", "mse", "vb"):
            checks.append(close(name, getattr(_losses(denoiser, arrays, seed), name), stored))
        elif match := re.fullmatch(r"(timesteps|betas)_(\w+)", name):
            kept = schedule.respaced(match[2])
            checks.append(
                exact(name, kept.timesteps, stored) if match[1] == "timesteps" else close(name, kept.betas, stored)
            )
        elif match := re.fullmatch(r"ddpm_(\w+)_clip([01])", name):
            checks.append(close(name, _walk(denoiser, Ancestral(match[2] == "1"), match[1], seed), stored))
        elif match := re.fullmatch(r"ddim_(\w+)_eta(\d+(?:\.\d+)?)", name):
            checks.append(close(name, _walk(denoiser, DDIM(float(match[2])), match[1], seed), stored))
        else:
            checks.append(Check(f"{name} (unknown array)", np.inf, 0.0))
    return checks


def _normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape)


def _losses(denoiser: Denoiser, arrays: dict[str, np.ndarray], seed: int) -> Losses:
    if "loss_t" not in arrays or arrays["loss_t"].ndim != 1 or not arrays["loss_t"].size:
        raise Disagreement("loss_t (is missing, or no row of times)")
    t = torch.from_numpy(whole("loss_t", arrays["loss_t"]))
    if int(t.min()) < 0 or int(t.max()) > 999:
        raise Disagreement(f"loss_t ({int(t.max())} lies outside 0 to 999)")
    x0 = torch.from_numpy(np.clip(_normal(seed, (len(t), 4, 8, 8)), -1, 1).astype(np.float32))
    noise = torch.from_numpy(_normal(seed + 1, (len(t), 4, 8, 8)).astype(np.float32))
    return hybrid_loss(denoiser, x0, t, noise)


def _walk(denoiser: Denoiser, sampler: Sampler, steps: str, seed: int) -> Tensor:
    def noise(k: int) -> Tensor:
        return torch.from_numpy(_normal(seed * 1000 + k, SHAPE).astype(np.float32))

    x = torch.from_numpy(_normal(seed + 2, SHAPE).astype(np.float32))
    for step in sample(denoiser, x, sampler=sampler, steps=steps, noise=noise):
        x = step.x
    return x
