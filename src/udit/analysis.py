"""What a model costs: parameters and MACs, counted on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from udit.models.build import build, fuse
from udit.models.config import ModelConfig
from udit.models.published import frozen_parameters


@dataclass(frozen=True)
class Cost:
    """Counts of one config."""

    parameters: int
    """In training form. As in papers, the fixed position table that DiT's release holds as a parameter counts."""
    inference_parameters: int
    """In the form that ``fuse`` returns."""
    macs: int
    """Multiply-accumulates of one forward at batch 1, inference form: matrix products, convolutions, attention."""


def cost(config: ModelConfig, size: tuple[int, int] | None = None) -> Cost:
    """Counts a config's parameters and MACs; nothing is allocated.

    Args:
        config: of the model.
        size: (H, W) of the input; the config's own if None.
    """
    model = build(config, device="meta")
    fused = fuse(model)
    x = torch.empty(1, config.in_channels, *(size or config.size), device="meta")
    t = torch.zeros(1, device="meta")
    shape = config.condition_shape
    dtype = torch.float32 if shape else torch.long
    y = None if shape is None else torch.zeros(1, *shape, dtype=dtype, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fused(x, t, y)
    frozen = frozen_parameters(config)
    parameters, inference = (sum(p.numel() for p in m.parameters()) + frozen for m in (model, fused))
    return Cost(parameters, inference, macs=counter.get_total_flops() // 2)
