"""Feed-forward parts.

Axes: B batch, H and W side lengths, D width, E hidden channels (ratio * D).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.nn.specs import Mlp, RepConv, SwiGlu
from udit.ops.matmul import composed


class MLP(nn.Module):
    """Matrix, GELU, matrix: ViT's and DiT's FFN."""

    def __init__(self, spec: Mlp, width: int) -> None:
        super().__init__()
        hidden = round(spec.ratio * width)
        self.gelu = functools.partial(F.gelu, approximate="tanh" if spec.gelu == "tanh" else "none")
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return ops.apply(self.contract, ops.recomputable(self.gelu, ops.apply(self.expand, x)))

    def folded(self) -> dict[str, Tensor]:
        """State of the fused module: its own."""
        return dict(self.state_dict())


class GatedMLP(nn.Module):
    """Two matrices with biases, the first one's halves multiplied: GELU(x) * y (Shazeer 2020)."""

    def __init__(self, spec: Mlp, width: int) -> None:
        super().__init__()
        hidden = round(spec.ratio * width)
        self.gelu = functools.partial(F.gelu, approximate="tanh" if spec.gelu == "tanh" else "none")
        self.expand = nn.Linear(width, 2 * hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x, y = ops.apply(self.expand, x).chunk(2, dim=-1)
        return ops.apply(self.contract, ops.recomputable(torch.mul, ops.recomputable(self.gelu, x), y))


def composed_projection(part: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a matrix, or of a chain of two."""
    if isinstance(part, nn.Linear):
        return part.weight, part.bias
    first, second = cast(nn.Sequential, part)
    return composed(cast(nn.Linear, first), cast(nn.Linear, second))


def projected(x: Tensor, part: nn.Module) -> Tensor:
    """x [..., in] through a matrix or a chain of two."""
    if not isinstance(part, nn.Sequential):
        return ops.apply(part, x)
    first, second = (cast(nn.Linear, layer) for layer in part)
    return ops.apply_chain(first, second, x)


def composed_depthwise(branches: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Kernel [D, 1, s, s] and bias [D] of an identity plus parallel depthwise convolutions, the largest first.

    Differentiable in all of them. In training this is exact too, and takes fewer operations than running the branches,
    which differ only in the support of their kernels.
    """
    size = branches[0].kernel_size[0]
    kernel, bias = branches[0].weight, cast(Tensor, branches[0].bias)
    for branch in branches[1:]:
        kernel = kernel + F.pad(branch.weight, [(size - branch.kernel_size[0]) // 2] * 4)
        # Added one by one: the gradients of a stack's sum are one tensor, which clipping would scale once for each.
        bias = bias + cast(Tensor, branch.bias)
    identity = F.pad(kernel.new_ones(1, 1, 1, 1), [size // 2] * 4)
    return kernel + identity, bias


class DepthwiseFFN(nn.Module):
    """1x1, GELU (exact), depthwise convolution, 1x1; re-parameterised while training (Tian et al. 2024, Sec. 3.3).

    One forward serves both forms: it composes the folded weights and applies them.
    """

    def __init__(self, spec: RepConv, width: int) -> None:
        super().__init__()
        self.spec = spec
        hidden = round(spec.ratio * width)
        middle = max(1, hidden // 2)

        def project(inner: int, outer: int) -> nn.Module:
            if not spec.reparam:
                return nn.Linear(inner, outer)
            return nn.Sequential(nn.Linear(inner, middle), nn.Linear(middle, outer))

        self.expand = project(width, hidden)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(hidden, hidden, side, padding=side // 2, groups=hidden) for side in spec.branches
        )
        self.contract = project(hidden, width)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of the folded expansion [E, D], depthwise convolution [E, 1, s, s] and contraction [D, E]."""
        return *composed_projection(self.expand), *self.kernel(), *composed_projection(self.contract)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        x = projected(x, self.expand)
        x = ops.depthwise(x, *self.kernel(), gelu=True)
        return projected(x, self.contract)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The folded depthwise kernel [E, 1, s, s] and its bias [E]."""
        branches = cast(list[nn.Conv2d], list(self.depthwise))
        if self.spec.reparam:
            return composed_depthwise(branches)
        return branches[0].weight, cast(Tensor, branches[0].bias)

    def folded(self) -> dict[str, Tensor]:
        """State of the same FFN built from ``spec.folded()``."""
        names = (
            "expand.weight",
            "expand.bias",
            "depthwise.0.weight",
            "depthwise.0.bias",
            "contract.weight",
            "contract.bias",
        )
        return dict(zip(names, self.weights(), strict=True))


class SwiGLU(nn.Module):
    """Two matrices with biases, the first one's halves multiplied: SiLU(x) * y (Shazeer 2020)."""

    def __init__(self, spec: SwiGlu, width: int) -> None:
        super().__init__()
        hidden = spec.channels(width)
        self.expand = nn.Linear(width, 2 * hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x, y = ops.apply(self.expand, x).chunk(2, dim=-1)
        return ops.apply(self.contract, ops.recomputable(torch.mul, ops.recomputable(F.silu, x), y))
