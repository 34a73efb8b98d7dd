"""Mamba on sequences, modulated (Gu & Dao 2023; Phung et al. 2024, DiMSUM).

Axes: B batch, L tokens, D channels, E channels inside (2 D), N states, R rank of the step sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.nn.conditioning import Modulation


class Unused(nn.Module):
    """A layer of a release whose result nothing reads: kept to be given back, never trained, never run."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(outer, inner))
        self.register_buffer("bias", torch.empty(outer))


class Mamba(nn.Module):
    """Causal convolution, selective scan and gate, between two matrices without bias.

    Args:
        width: D.
        cond: length of the condition, which the release projects (``cond_proj``) for a kernel that overwrites it.
        states: N.
        kernel: length of the convolution.
        rank: R.
    """

    def __init__(self, width: int, cond: int, states: int, kernel: int, rank: int) -> None:
        super().__init__()
        inner = 2 * width
        self.split = [rank, states, states]
        self.expand = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.select = nn.Linear(inner, rank + 2 * states, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_rate = nn.Parameter(torch.empty(inner, states))
        self.direct = nn.Parameter(torch.empty(inner))
        self.unused = Unused(cond, inner)
        self.contract = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; token l sees tokens up to l."""
        x, gate = ops.apply(self.expand, x).chunk(2, dim=-1)
        x = ops.recomputable(F.silu, self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, into, out_of = ops.apply(self.select, x).split(self.split, dim=-1)
        delta = ops.recomputable(F.softplus, self.step(step).to(torch.promote_types(x.dtype, torch.float32)))
        rates = -self.log_rate.to(delta.dtype).exp()
        y = ops.selective_scan(x, delta, rates, into, out_of)
        y = ops.recomputable(torch.addcmul, y, x, self.direct.to(x.dtype))
        y = ops.recomputable(torch.mul, y, ops.recomputable(F.silu, gate))
        return ops.apply(self.contract, y)


class ModulatedMamba(nn.Module):
    """A residual Mamba, modulated before and gated after by the condition; its input is not normalised here."""

    def __init__(self, width: int, cond: int, states: int, kernel: int, rank: int) -> None:
        super().__init__()
        self.mixer = Mamba(width, cond, states, kernel, rank)
        self.modulation = nn.Linear(cond, 3 * width)

    def condition(self, cond: Tensor) -> Modulation:
        """SiLU'd condition [B, cond] -> shift, scale and gate, each [B, 1, D]."""
        return Modulation(*self.modulation(cond)[:, None].chunk(3, dim=-1))

    def forward(self, x: Tensor, mod: Modulation) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return torch.addcmul(x, mod.gate, self.mixer(torch.addcmul(mod.shift, x, 1 + mod.scale)))
