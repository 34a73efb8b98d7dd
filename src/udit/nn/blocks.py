"""Running a block: with its activations kept for backward, or made again."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run(block: nn.Module, recompute: bool, x: Tensor, *args: Any) -> Tensor:
    """``block(x, *args)``; with ``recompute``, while it trains, its activations are made again in backward."""
    if recompute and block.training:
        return checkpoint(block, x, *args, use_reentrant=False)
    return block(x, *args)
