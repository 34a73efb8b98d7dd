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

from udit.nn.depthwise import depthwise
from udit.nn.linear import affine, linear
from udit.nn.recompute import cheap
from udit.nn.specs import Mlp, RepConv


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
        return affine(cheap(self.gelu, affine(x, self.expand)), self.contract)

    def folded(self) -> dict[str, Tensor]:
        """State of the inference form: its own."""
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
        x, y = affine(x, self.expand).chunk(2, dim=-1)
        return affine(cheap(torch.mul, cheap(self.gelu, x), y), self.contract)


def composed_linear(first: nn.Linear, second: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of ``second(first(x))``, differentiable in both."""
    return second.weight @ first.weight, second.weight @ first.bias + second.bias


def composed_projection(part: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a matrix, or of a chain of two."""
    if isinstance(part, nn.Linear):
        return part.weight, part.bias
    first, second = cast(nn.Sequential, part)
    return composed_linear(cast(nn.Linear, first), cast(nn.Linear, second))


def projected(x: Tensor, part: nn.Module) -> Tensor:
    """x [..., in] through a matrix or a chain of two: their product's, unless few rows make one by one cheaper."""
    if not isinstance(part, nn.Sequential):
        return affine(x, part)
    first, second = (cast(nn.Linear, layer) for layer in part)
    inner, middle, outer = first.in_features, first.out_features, second.out_features
    rows = x.numel() // inner
    few = not torch.compiler.is_exporting() and rows * middle * (inner + outer) < (rows + middle) * inner * outer
    if few:  # an exported program serves any number of rows
        return affine(affine(x, first), second)
    return linear(x, *composed_linear(first, second))


def composed_depthwise(branches: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Kernel [D, 1, s, s] and bias [D] of an identity plus parallel depthwise convolutions, the largest first.

    Differentiable in all of them. In training this is exact too, and cheaper than running the branches: they differ
    only in the support of their kernels.
    """
    size = branches[0].kernel_size[0]
    kernel = branches[0].weight
    for branch in branches[1:]:
        kernel = kernel + F.pad(branch.weight, [(size - branch.kernel_size[0]) // 2] * 4)
    identity = F.pad(kernel.new_ones(1, 1, 1, 1), [size // 2] * 4)
    bias = torch.stack([cast(Tensor, branch.bias) for branch in branches]).sum(0)
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
        return projected(cheap(depthwise, projected(x, self.expand), *self.kernel(), True), self.contract)

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
