"""From a block's features to those of a vision model (REPA, Yu et al. 2025, arXiv 2410.06940)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from udit.nn import init

INIT: Mapping[str, init.Fill] = {r"bias$": init.constant(0.0), r"": init.xavier}
"""Of a projector that no network owns."""


def projector(width: int, hidden: int, out: int) -> nn.Module:
    """Three matrices with SiLUs between: [..., width] -> [..., out]."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out)
    )
