"""Image to image: sampling starts from a noised image, not from noise alone (SDEdit, Meng et al., arXiv 2108.01073).

A sampler keeps its own times and leaves out those above the strength. At the first that remains, x_t is the image with
that time's noise, alpha x0 + sigma eps. So strength 1 starts at the sampler's first time, and half the strength takes
about half the evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udit.diffusion.denoiser import mix
from udit.diffusion.schedule import Schedule
from udit.errors import UserError

TOLERANCE = 1e-6
"""By which a time may lie above the strength: a rounding error of float32."""


@dataclass(frozen=True)
class Origin:
    """The images that a batch starts from, and how much of them is lost to noise."""

    x0: Tensor
    """[B, C, H, W] as the network sees images."""
    strength: float
    """Time to which they are noised, as a fraction: above 0 (they stay as they are) to 1 (noise alone)."""

    def noised(self, schedule: Schedule, time: Tensor, noise: Tensor) -> Tensor:
        """x_t of the images at a scalar time of the schedule, with noise [B, C, H, W]."""
        x0 = self.x0.to(torch.promote_types(noise.dtype, torch.float32))
        return mix(schedule, x0, noise.to(x0), time.to(noise.device).expand(len(x0)))


def skipped(schedule: Schedule, times: Tensor, strength: float) -> int:
    """How many of a sampler's times lie above a strength.

    Args:
        schedule: the process.
        times: [n] at which the sampler's steps start, in the schedule's unit and descending.
        strength: a fraction of time.

    Raises:
        UserError: all do, or the strength is not a fraction.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength is {strength:g}; it is a fraction of time, above 0 (the image) to 1 (noise)")
    fractions = schedule.fraction(times)
    above = int((fractions > strength + TOLERANCE).sum())
    if above == len(times):
        raise UserError(
            f"strength is {strength:g} and the cleanest of {len(times)} steps starts at {float(fractions[-1]):.3g}; "
            "give a higher strength or more steps"
        )
    return above


def remaining(schedule: Schedule, grid: Tensor, strength: float, *, ends: bool = True) -> Tensor:
    """The times of a grid up to a strength; with ``ends`` its last starts no step."""
    return grid if strength == 1 else grid[skipped(schedule, grid[:-1] if ends else grid, strength) :]


def begun(
    schedule: Schedule, grid: Tensor, x: Tensor, origin: Origin | None, *, ends: bool = True
) -> tuple[Tensor, Tensor]:
    """The times of a grid that a run visits, and x at the first of them."""
    if origin is None:
        return grid, x
    grid = remaining(schedule, grid, origin.strength, ends=ends)
    return grid, origin.noised(schedule, grid[0], x)


def check_images(images: Tensor, count: int, shape: tuple[int, int, int]) -> None:
    """Refuses what a model cannot start from.

    Args:
        images: uint8 [N, C, H, W].
        count: N.
        shape: (C, H, W) of the images that it draws.

    Raises:
        UserError: they are of another number, type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != count:
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(f"from_image is {kind} {list(images.shape)} for {count} seeds; give uint8 [{count}, C, H, W]")
    if tuple(images.shape[1:]) != shape:
        given, wanted = ("{} channels of {}x{}".format(*each) for each in (images.shape[1:], shape))
        raise UserError(f"from_image has {given} pixels and the model draws {wanted}; crop and scale the images")
