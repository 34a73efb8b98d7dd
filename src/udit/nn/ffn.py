"""Feed-forward parts.

Axes: B batch, H and W side lengths, D width, E hidden channels (ratio * D).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.config.parts import Mlp, RepConv
from udit.nn.depthwise import depthwise


class MLP(nn.Module):
    """Matrix, GELU, matrix: ViT's and DiT's FFN."""

    def __init__(self, spec: Mlp, width: int) -> None:
        super().__init__()
        hidden = round(spec.ratio * width)
        self.approximate = "tanh" if spec.gelu == "tanh" else "none"
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.contract(F.gelu(self.expand(x), approximate=self.approximate))

    def folded(self) -> dict[str, Tensor]:
        """State of the inference form: its own."""
        return dict(self.state_dict())


class GatedMLP(nn.Module):
    """Two matrices with biases, the first one's halves multiplied: GELU(x) * y (Shazeer 2020)."""

    def __init__(self, spec: Mlp, width: int) -> None:
        super().__init__()
        hidden = round(spec.ratio * width)
        self.approximate = "tanh" if spec.gelu == "tanh" else "none"
        self.expand = nn.Linear(width, 2 * hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        x, y = self.expand(x).chunk(2, dim=-1)
        return self.contract(F.gelu(x, approximate=self.approximate) * y)


def composed_linear(first: nn.Linear, second: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of ``second(first(x))``, differentiable in both."""
    return second.weight @ first.weight, second.weight @ first.bias + second.bias


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
        branches = cast(list[nn.Conv2d], list(self.depthwise))
        if not self.spec.reparam:
            expand, contract = cast(nn.Linear, self.expand), cast(nn.Linear, self.contract)
            depthwise = (branches[0].weight, cast(Tensor, branches[0].bias))
            return expand.weight, expand.bias, *depthwise, contract.weight, contract.bias
        expand_pair, contract_pair = cast(nn.Sequential, self.expand), cast(nn.Sequential, self.contract)
        return (
            *composed_linear(cast(nn.Linear, expand_pair[0]), cast(nn.Linear, expand_pair[1])),
            *composed_depthwise(branches),
            *composed_linear(cast(nn.Linear, contract_pair[0]), cast(nn.Linear, contract_pair[1])),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        expand, expand_bias, kernel, kernel_bias, contract, contract_bias = self.weights()
        x = F.gelu(F.linear(x, expand, expand_bias))
        return F.linear(depthwise(x, kernel, kernel_bias), contract, contract_bias)

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
