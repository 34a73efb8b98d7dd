"""A fused network as a program of torch's own operators, free in the batch and, where possible, in H and W."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from udit import rng
from udit.errors import UserError
from udit.models.config import ModelConfig

NAMES = ("x", "t", "y")
"""Names of a graph's inputs; the last one only for networks that take a condition."""


def inputs(config: ModelConfig, batch: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Inputs of a graph: noise, times over the network's whole range, and conditions; float32, labels int64."""
    draw = rng.generator(0, "export", batch, *size)
    x = torch.randn(batch, *config.input_shape(size), generator=draw)
    share = torch.rand(batch, generator=draw)
    t = {"index": (999 * share).round(), "unit": share, "sigma": 0.002 + 80 * share**4}[config.time]
    shape = config.condition_shape
    if shape is None:
        return x, t
    top = config.num_classes + (config.null_label is not None)
    y = torch.randn(batch, *shape, generator=draw) if shape else torch.randint(top, (batch,), generator=draw)
    return x, t, y


def trace(network: nn.Module, size: tuple[int, int] | None) -> ExportedProgram:
    """The program of ``network(x, t, y)``.

    Args:
        network: fused, float32.
        size: the only (H, W) it will take; None leaves both free.

    Raises:
        UserError: the network cannot be traced, or not with free sizes.
    """
    config: ModelConfig = network.config  # type: ignore[assignment]
    example = inputs(config, 3, size or config.size)
    dims: list[dict[int, Dim]] = [{0: Dim("batch", min=1)} for _ in example]
    if size is None:
        step = config.size_step
        if step is None:
            raise UserError(f"size is free and this {config.family} is bound to the size it was made for; name that")
        rows, columns = Dim("rows", min=1), Dim("columns", min=1)
        dims[0] |= {2: step * rows, 3: step * columns} if step > 1 else {2: rows, 3: columns}
    try:
        return torch.export.export(network, example, dynamic_shapes=tuple(dims), strict=False)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{config.family} cannot be traced: {' '.join(str(error).split())[:200]}") from None
