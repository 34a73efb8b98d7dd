"""Copies from the host to a device."""

from __future__ import annotations

import torch
from torch import Tensor

from udit.ops import surroundings


def sent(x: Tensor, device: torch.device | str | None) -> Tensor:
    """A tensor of the host on a device; for a copy to a CUDA GPU the host does not wait.

    A copy from ordinary memory waits until the GPU has done all that it was asked before. One from pinned memory does
    not; torch keeps that memory until the copy is done.

    Args:
        x: on the CPU, or where it goes.
        device: where it goes; None leaves it.
    """
    if device is None or torch.device(device).type != "cuda":
        return x.to(device)
    if x.device.type == "cpu" and not surroundings.recorded() and not surroundings.without_data(x):
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
