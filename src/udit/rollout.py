"""A simulation's states one after another, each sampled from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from udit.assemble import System
from udit.diffusion.config import SamplingConfig
from udit.errors import UserError


def roll_out(
    system: System,
    states: Tensor,
    steps: int,
    *,
    seeds: Sequence[int] | None = None,
    sampling: SamplingConfig | None = None,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Goes on from states of a simulation with a model of next states (``data.condition`` previous).

    Args:
        system: the model.
        states: float [N, C, H, W], the first ones.
        steps: how many states follow each.
        seeds: one for each trajectory, whose noise is the same at every step; 0, 1, ... if None.
        sampling: sampler and steps; the model's own setting if None.
        batch_size: states that are sampled together.

    Yields:
        float32 [N, C, H, W], the states after one step, after two, and so on.

    Raises:
        UserError: the model makes no next states, or of another shape.
    """
    if system.config.condition is None or system.config.condition.kind != "previous":
        raise UserError("the model was not trained on next states; take one of data.condition=previous")
    if tuple(states.shape[1:]) != system.image_shape or not states.is_floating_point():
        kind, shape = str(states.dtype).removeprefix("torch."), list(system.image_shape)
        raise UserError(f"states are {kind} {list(states.shape)} and the model makes float [N, {str(shape)[1:]}")
    seeds = range(len(states)) if seeds is None else seeds
    for _ in range(steps):
        condition = system.condition_of(states)
        made = system.generate(seeds, condition=condition, sampling=sampling, batch_size=batch_size)
        states = torch.cat(list(made))
        yield states
