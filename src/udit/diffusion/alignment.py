"""How far a network's features are from a vision model's: REPA's loss, and U-REPA's of relative similarities.

Axes: B batch, N tokens, D channels of the vision model, to which the network's features are projected.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Scope = Literal["image", "batch"]


def alignment_loss(projections: Tensor, features: Tensor) -> Tensor:
    """REPA's alignment (Yu et al. 2025, arXiv 2410.06940): the mean of -cos over tokens.

    Args:
        projections: [..., N, D] of the network.
        features: as projections, of the vision model.

    Returns:
        [...], -1 to 1.
    """
    return -F.cosine_similarity(projections, features, dim=-1, eps=1e-12).mean(dim=-1)


def manifold_loss(projections: Tensor, features: Tensor, scope: Scope = "image") -> Tensor:
    """U-REPA's loss (Tian et al. 2025, arXiv 2503.18414): tokens are to be as similar to one another as features are.

    The paper gives the squared Frobenius norm of the difference of both matrices of cosine similarities. What it is
    divided by, and between which tokens similarities are taken, is not public: here it is the mean over all entries.

    Args:
        projections: [B, N, D] of the network.
        features: [B, N, D] of the vision model.
        scope: similarities between the tokens of an image, or between those of all images of the batch.

    Returns:
        [B], 0 to 4.
    """
    of_network, of_teacher = (_similarities(x, scope) for x in (projections, features))
    return (of_network - of_teacher).square().flatten(1).mean(dim=1)


def _similarities(x: Tensor, scope: Scope) -> Tensor:
    """[B, N, D] -> cosines between tokens, [B, N, N] or [B, N, B * N]."""
    x = F.normalize(x, dim=-1, eps=1e-12)
    others = x if scope == "image" else x.flatten(0, 1).expand(len(x), -1, -1)
    return x @ others.transpose(1, 2)
