"""PDE-Transformer (Holzschuh et al. 2025, arXiv 2505.24717), written out.

Axes: B batch, C input channels, H and W side lengths, D width of a level, h heads, R channels per head, w side of a
window, N = w * w pixels of a window, n windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.pde.config import PDEConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.conditioning import Modulation, VectorConditioner
from udit.nn.conv import Merge, Split
from udit.nn.tokens import unpatchify
from udit.nn.window import join_windows, split_windows, wrap_mask

Mods = Sequence[tuple[Modulation, Modulation]]
TIME_SCALE = 1000
"""Of t in the timestep features."""


class RelativePositions(nn.Module):
    """Bias of attention by the offset of query and key: 16 * sigmoid of an MLP on a log scale (Liu et al. 2022)."""

    def __init__(self, window: int, heads: int) -> None:
        super().__init__()
        self.window = window
        self.expand = nn.Linear(2, 512)
        self.contract = nn.Linear(512, heads, bias=False)

    def forward(self) -> Tensor:
        """[h, N, N]: queries are the rows."""
        w, device = self.window, self.expand.weight.device
        side = torch.arange(1 - w, w, device=device, dtype=torch.float32) * 8 / (w - 1)
        side = (side.sign() * (side.abs() + 1).log2() / 3).to(self.expand.weight.dtype)
        offsets = torch.stack(torch.meshgrid(side, side, indexing="ij"), dim=-1)
        bias = 16 * torch.sigmoid(self.contract(F.relu(self.expand(offsets))))  # [2 w - 1, 2 w - 1, h]
        place = torch.arange(w, device=device)
        offset = place[:, None] - place + w - 1
        return bias[offset[:, None, :, None], offset[None, :, None, :]].permute(4, 0, 1, 2, 3).reshape(-1, w * w, w * w)


class WindowAttention(nn.Module):
    """Cosine attention within the windows of a map, biased by relative positions; without an output matrix.

    Args:
        width: D.
        config: heads and window.
    """

    def __init__(self, width: int, config: PDEConfig) -> None:
        super().__init__()
        self.heads, self.window = config.heads, config.window
        self.logit_scale = nn.Parameter(torch.empty(config.heads))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.positions = RelativePositions(config.window, config.heads)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, H, W, D], H and W multiples of w; mask [n, 1, N, N], true where allowed -> [B, H, W, D]."""
        window = (self.window, self.window)
        parts = ops.apply(self.qkv, x).unflatten(-1, (3, self.heads, -1)).unbind(3)
        q, k, v = (split_windows(part, window).unflatten(1, (-1, self.heads)) for part in parts)  # [n, B, h, N, R]
        bias = self.positions().to(q.dtype)
        if mask is not None:
            masked = torch.where(mask[:, None], bias, bias - 200)  # [n, 1, h, N, N]
            bias = masked.expand(-1, q.shape[1], -1, -1, -1).flatten(0, 1)
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # engines of graphs know four axes
        out = ops.attend(q, k, v, self.logit_scale, mask=bias).unflatten(0, (-1, x.shape[0])).flatten(1, 2)
        height, width = x.shape[1:3]
        return join_windows(out, window, height, width, self.heads).flatten(-2)


class Block(nn.Module):
    """Attention and FFN under an affine norm, modulated and gated about 1 by the condition."""

    def __init__(self, width: int, config: PDEConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.attention = WindowAttention(width, config)
        self.ffn = config.ffn.build(width)
        self.modulation = nn.Linear(width, 6 * width)

    def condition(self, cond: Tensor) -> tuple[Modulation, Modulation]:
        """SiLU'd condition [B, D] -> modulations of attention and FFN."""
        parts = self.modulation(cond)[:, None, None].chunk(6, dim=-1)
        return Modulation(*parts[:3]), Modulation(*parts[3:])

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation], mask: Tensor | None) -> Tensor:
        """x [B, H, W, D], ``condition``'s result, the mask of ``WindowAttention`` -> [B, H, W, D]."""
        one, two = mods
        x = ops.gated_sum(x, 1 + one.gate, self.attention(_modulated(self.norm1, x, one), mask))
        return ops.gated_sum(x, 1 + two.gate, self.ffn(_modulated(self.norm2, x, two)))


def _modulated(norm: nn.LayerNorm, x: Tensor, mod: Modulation) -> Tensor:
    return ops.recomputable(torch.addcmul, mod.shift, ops.recomputable(ops.normalize, norm, x), 1 + mod.scale)


class Stage(nn.Module):
    """The blocks of one level on one side of the U; the windows of every other block are shifted by half a window.

    A map that does not split into windows is padded with zeros below and to the right before each block's norms, so
    that padded pixels have a value, and real ones attend to them, as in the release.
    """

    def __init__(self, config: PDEConfig, width: int, depth: int) -> None:
        super().__init__()
        self.window, self.periodic = config.window, config.periodic
        self.blocks = module_list(Block(width, config) for _ in range(depth))
        self.checkpointing = False

    def condition(self, cond: Tensor) -> Mods:
        """SiLU'd condition [B, width] -> the modulations of every block."""
        return [block.condition(cond) for block in self.blocks]

    def forward(self, x: Tensor, mods: Mods) -> Tensor:
        """[B, H, W, width] -> [B, H, W, width]."""
        height, width = x.shape[1:3]
        w, half = self.window, self.window // 2
        below, right = (w * ((side + w - 1) // w) - side for side in (height, width))
        edges = not self.periodic and min(height, width) >= w
        # rolling up by half a window is rolling down by the rest of the map
        mask = wrap_mask(height, width, (w, w), (height - half, width - half), x.device) if edges else None
        for i, (block, mod) in enumerate(zip(self.blocks, mods, strict=True)):
            shift = half if i % 2 else 0
            x = F.pad(x.roll((-shift, -shift), (1, 2)), (0, 0, 0, right, 0, below))
            x = run(block, self.checkpointing, x, mod, mask if shift else None)
            x = x[:, :height, :width].roll((shift, shift), (1, 2))
        return x


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    encoder: list[Mods]
    """Modulations of encoder level 1, 2, ...; the bottleneck's last."""
    decoder: list[Mods]
    """Modulations of decoder level 1, 2, ..."""
    out: tuple[Tensor, ...]
    """Shift and scale of the final norm."""


class PDETransformer(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"logit_scale$": init.constant(math.log(10)),
        r"norm\d\.weight$": init.constant(1.0),
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioners\.": init.gaussian(0.02),
        r"^stem\.": init.xavier_flat,
        r"": init.xavier,
    }

    def __init__(self, config: PDEConfig) -> None:
        super().__init__()
        self.config = config
        widths, depths = config.widths, config.depths
        inside = [widths[1], *widths[1:-1]]
        self.stem = nn.Conv2d(config.input_channels, config.width, config.patch, stride=config.patch)
        self.conditioners = nn.ModuleList(VectorConditioner(width, config.num_classes) for width in widths)
        self.encoder = module_list(Stage(config, width, depths[i]) for i, width in enumerate(widths))
        self.merge = nn.ModuleList(Merge(width) for width in widths[:-1])
        self.split = nn.ModuleList(Split(2 * width) for width in widths[:-1])
        self.reduce = nn.ModuleList(nn.Linear(2 * w, own) for w, own in zip(widths[:-1], inside, strict=True))
        self.decoder = module_list(Stage(config, own, depths[-1 - i]) for i, own in enumerate(inside))
        self.last = nn.Conv2d(widths[1], widths[1], 3, padding=1)
        self.out_modulation = nn.Linear(widths[1], 2 * widths[1])
        self.out = nn.Conv2d(widths[1], config.patch**2 * config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] from 0 to 1, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide. Each width has its own embedding; the top decoder takes that of its width."""
        conds = [F.silu(embed(TIME_SCALE * t, y)) for embed in self.conditioners]
        encoder = [stage.condition(c) for stage, c in zip(self.encoder, conds, strict=True)]
        decoder = [stage.condition(c) for stage, c in zip(self.decoder, [conds[1], *conds[1:-1]], strict=True)]
        return Conditions(encoder, decoder, self.out_modulation(conds[1])[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, Tensor]:
        """Full resolution in: [B, C, H, W] -> the map of patches and its skip, [B, H, W, D]."""
        self.config.check_size(*x.shape[2:])
        x = self.encoder[0](ops.convolve_image(self.stem, x), cond.encoder[0])
        return x, x

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All below full resolution, which step caching keeps: [B, H, W, D] -> [B, H, W, D]."""
        skips: list[Tensor] = []
        for level in range(1, len(self.encoder)):
            x = self.encoder[level](self.merge[level - 1](x), cond.encoder[level])
            skips.append(x)
        for level in range(len(self.decoder) - 1, 0, -1):
            x = torch.cat([self.split[level](x), skips[level - 1]], dim=-1)
            x = self.decoder[level](ops.apply(self.reduce[level], x), cond.decoder[level])
        return self.split[0](x)

    def leave(self, x: Tensor, skip: Tensor, cond: Conditions) -> Tensor:
        """Full resolution out: [B, H, W, D] and the skip -> [B, out_channels, H, W]."""
        x = ops.apply(self.reduce[0], torch.cat([x, skip], dim=-1))
        x = ops.convolve(self.last, self.decoder[0](x, cond.decoder[0]))
        x = ops.convolve(self.out, ops.modulated_norm(x, *cond.out))
        return unpatchify(x, self.config.patch)
