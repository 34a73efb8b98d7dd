"""DiMSUM (Phung et al. 2024, arXiv 2411.04168), written out.

Axes: B batch, C input channels, H and W side lengths, p patch side, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.dimsum.config import DiMSUMConfig
from udit.nn import init
from udit.nn.attention import Attention, CrossFusion
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import AdaLNBlock, Modulation, VectorConditioner
from udit.nn.dropout import Dropout
from udit.nn.ffn import GatedMLP
from udit.nn.mamba import ModulatedMamba
from udit.nn.tokens import patchify, sincos_table, unpatchify
from udit.nn.wavelet import from_lines, from_windows, inverse_wavelets, to_lines, to_windows, wavelets


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    blocks: list[tuple[Modulation, Modulation, Modulation]]
    attention: tuple[Modulation, Modulation]
    """Of the shared block."""
    out: tuple[Tensor, ...]
    """Shift and scale of the final norm."""


class Block(nn.Module):
    """Half of the channels scanned in space, half in the wavelet domain, joined by attention; then a gated FFN.

    Block i reads the map in an order of its own: rows or columns, from either end; windows row by row or column by
    column.
    """

    def __init__(self, config: DiMSUMConfig, index: int) -> None:
        super().__init__()
        width, half = config.width, config.half
        self.by_column, self.backwards = index % 4 >= 2, index % 2 == 1
        self.drop_path = Dropout(config.drop_rate(index), whole=True)
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.spatial = ModulatedMamba(half, width, config.states, config.kernel, config.step_rank)
        self.frequency = ModulatedMamba(half, width, config.states, config.kernel, config.step_rank)
        self.fuse = CrossFusion(half, config.fusion_heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.ffn = GatedMLP(config.ffn, width)
        self.modulation = nn.Linear(width, 3 * width)

    def condition(self, cond: Tensor) -> tuple[Modulation, Modulation, Modulation]:
        """SiLU'd condition [B, D] -> modulations of both scans and of the FFN."""
        ffn = Modulation(*self.modulation(cond)[:, None, None].chunk(3, dim=-1))
        return self.spatial.condition(cond), self.frequency.condition(cond), ffn

    def forward(
        self, x: Tensor, residual: Tensor, mods: tuple[Modulation, Modulation, Modulation]
    ) -> tuple[Tensor, Tensor]:
        """x [B, H, W, D], the sum of those before, ``condition``'s result -> x and the sum, one block on."""
        residual = residual + self.drop_path(x)
        x = rms(residual, self.norm1).to(x.dtype)
        space, frequency = x.chunk(2, dim=-1)
        x = x + self.fuse(self.scan_space(space, mods[0]), self.scan_frequency(frequency, mods[1]))
        shift, scale, gate = mods[2]
        x = torch.addcmul(x, gate, self.ffn(ops.recomputable(torch.addcmul, shift, rms(x, self.norm2), 1 + scale)))
        return x, residual

    def scan_space(self, x: Tensor, mod: Modulation) -> Tensor:
        """[B, H, W, D / 2], line by line."""
        lines = self.spatial(to_lines(x, self.by_column, self.backwards), mod)
        return from_lines(lines, x.shape[1], x.shape[2], self.by_column, self.backwards)

    def scan_frequency(self, x: Tensor, mod: Modulation) -> Tensor:
        """[B, H, W, D / 2], window by window of its wavelets."""
        windows = self.frequency(to_windows(wavelets(x), self.backwards), mod)
        return inverse_wavelets(from_windows(windows, x.shape[1], x.shape[2], self.backwards))


def rms(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """The norm of x [..., D] in x's own dtype, whatever the weight's."""
    return ops.recomputable(F.rms_norm, x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


class DiMSUM(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    def __init__(self, config: DiMSUMConfig) -> None:
        super().__init__()
        self.config = config
        width, area, (rows, columns) = config.width, config.patch**2, config.grid
        self.embed = nn.Linear(config.input_channels * area, width)
        self.positions = nn.Parameter(torch.empty(rows, columns, width))
        self.conditioner = VectorConditioner(width, config.num_classes, null_class=config.null_class)
        self.blocks = module_list(Block(config, i) for i in range(config.depth))
        self.attention = AdaLNBlock(Attention(width, config.heads), GatedMLP(config.ffn, width), width)
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.checkpointing = False

    @property
    def INIT(self) -> Mapping[str, init.Fill]:  # noqa: N802 - what every network calls it
        """Patterns of tensor names and their fills; unlike other networks' they depend on the size."""
        return {
            r"^out\.|^out_modulation\.|^(blocks\.\d+|attention)\.modulation\.": init.constant(0.0),
            r"^positions$": init.values(lambda shape: sincos_table(*shape)),
            r"norm\d\.weight$|\.direct$": init.constant(1.0),
            r"\.log_rate$": init.values(lambda shape: torch.arange(1, shape[1] + 1).log().expand(shape)),
            r"\.step\.bias$": init.inverse_softplus(1e-3, 1e-1),
            r"\.conv\.": init.torch_default,
            r"bias$": init.constant(0.0),
            r"\.contract\.weight$": init.scaled(init.torch_default, self.config.depth**-0.5),
            r"^conditioner\.": init.gaussian(0.02),
            r"^embed\.": init.xavier,
            r"": init.torch_default,
        }

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide."""
        cond = F.silu(self.conditioner(t, y))
        blocks = [block.condition(cond) for block in self.blocks]
        return Conditions(
            blocks, self.attention.condition(cond), self.out_modulation(cond)[:, None, None].chunk(2, dim=-1)
        )

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, None]:
        """Patches with their positions: [B, C, H, W] -> [B, H / p, W / p, D], and no skip: DiMSUM has none."""
        self.config.check_size(*x.shape[2:])
        x = self.embed(patchify(x, self.config.patch))
        return x + self.positions.to(x.dtype), None

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All blocks, and after every few of them the shared one, which takes x alone. [B, H / p, W / p, D]."""
        residual = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for i, (block, mods) in enumerate(zip(self.blocks, cond.blocks, strict=True), start=1):
            x, residual = run(block, self.checkpointing, x, residual, mods)
            if i % self.config.attention_every == 0:
                x = run(self.attention, self.checkpointing, x, cond.attention)
        return x

    def leave(self, x: Tensor, skip: None, cond: Conditions) -> Tensor:
        """Patches back to pixels: [B, H / p, W / p, D] -> [B, out_channels, H, W]."""
        return unpatchify(self.out(ops.modulated_norm(x, *cond.out)), self.config.patch)
