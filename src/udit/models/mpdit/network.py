"""MPDiT (arXiv 2603.26357), written out.

Axes: B batch, C input channels, H and W side lengths, p patch side, D width, M label tokens, N patches; of the time
embedding G points of a grid, E channels, K frequencies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.mpdit.config import MPDiTConfig
from udit.nn import init
from udit.nn.attention import Attention
from udit.nn.blocks import ModuleSequence, module_list, run
from udit.nn.conditioning import (
    ModulatedBlock,
    Modulation,
    SecondTime,
    VectorConditioner,
    check_times,
    label_rows,
    modulations,
    refuse_labels,
    split_times,
)
from udit.nn.tokens import patchify, sincos_table, unpatchify

POINTS, CHANNELS, FREQUENCIES, LAYERS = 32, 32, 16, 3
"""G, E and K of the time embedding, and how many spectral layers it has."""
GELU = functools.partial(F.gelu, approximate="tanh")


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone."""

    mods: tuple[Modulation, Modulation]
    """Modulations of attention and FFN, the same in every block; the FFN's shift and scale are the head's too."""
    labels: Tensor
    """The label's tokens, [B, M, D]; M is 0 without classes."""


class SpectralLayer(nn.Module):
    """A matrix for each of the K lowest frequencies, plus one for all points (Li et al. 2021, arXiv 2010.08895)."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.empty(CHANNELS, CHANNELS, FREQUENCIES))
        self.imag = nn.Parameter(torch.empty(CHANNELS, CHANNELS, FREQUENCIES))
        self.mix = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, G, E] -> [B, G, E]. Fourier transforms of so few points are products with their matrices."""
        turns = torch.arange(POINTS, device=x.device)[:, None] * torch.arange(FREQUENCIES, device=x.device) % POINTS
        angles = turns.double() * (2 * math.pi / POINTS)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)  # [G, K]
        real, imag = cos.T @ x, -(sin.T @ x)  # [B, K, E]
        real, imag = (
            self.product(real, self.real) - self.product(imag, self.imag),
            (self.product(real, self.imag) + self.product(imag, self.real)),
        )
        # every frequency but 0 stands for its negative too
        back = torch.full((FREQUENCIES,), 2 / POINTS, dtype=x.dtype, device=x.device)
        back[0] /= 2
        return (cos * back) @ real - (sin * back) @ imag + self.mix(x)

    @staticmethod
    def product(x: Tensor, weight: Tensor) -> Tensor:
        """x [B, K, E] through the matrix of each frequency, [E, E, K]."""
        return torch.einsum("bki,iok->bko", x, weight)


class SpectralTime(nn.Module):
    """Embeds t by a Fourier neural operator: the mean over a grid of points from t - 1 to t + 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.second_time: SecondTime | None = None
        self.lift = nn.Linear(1, CHANNELS)
        self.layers = module_list(SpectralLayer() for _ in range(LAYERS))
        self.project = nn.Linear(CHANNELS, width)

    def take_second_time(self) -> None:
        """As ``TwoTimes``."""
        self.second_time = SecondTime(256, self.width)

    def forward(self, t: Tensor) -> Tensor:
        """t [B], or [B, 2] as ``TwoTimes`` -> [B, D]."""
        t, second = split_times(t, self.second_time)
        embedded = self.embed(t)
        return embedded if second is None else embedded + second

    def embed(self, t: Tensor) -> Tensor:
        """t [B] -> [B, D]."""
        check_times(t)
        points = t.float()[:, None] + torch.linspace(-1, 1, POINTS, device=t.device)
        x = self.lift(points[..., None].to(self.lift.weight.dtype))
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else F.gelu(x))
        return self.project(x.mean(dim=1))


def blocks(config: MPDiTConfig, depth: int) -> ModuleSequence[ModulatedBlock]:
    """The blocks of one level."""
    width, heads = config.width, config.heads
    return module_list(ModulatedBlock(Attention(width, heads), config.ffn.build(width)) for _ in range(depth))


class Finer(nn.Module):
    """From patches to those of half the side, which see the input's patches of that side; and the blocks there."""

    def __init__(self, config: MPDiTConfig, depth: int, patch: int) -> None:
        super().__init__()
        width = config.width
        self.patch = patch
        self.embed = nn.Linear(config.input_channels * patch**2, width)
        self.skip = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.refine = nn.Linear(width, width)
        self.blocks = blocks(config, depth)
        self.checkpointing = False

    def patches(self, x: Tensor) -> Tensor:
        """The input's patches with their positions, for ``forward``: [B, C, H, W] -> [B, H / p, W / p, D]."""
        x = ops.apply(self.skip, self.embed(patchify(x, self.patch)))
        _, height, width, dim = x.shape
        return x + sincos_table(height, width, dim, device=x.device).to(x.dtype)

    def forward(self, x: Tensor, patches: Tensor, mods: tuple[Modulation, Modulation]) -> Tensor:
        """Labels and patches [B, 1, M + N, D] -> [B, 1, M + 4 N, D]."""
        _, height, width, _ = patches.shape
        labels, x = x.split([x.shape[2] - height * width // 4, height * width // 4], dim=2)
        x = ops.apply(self.expand, x.reshape(-1, height // 2, width // 2, x.shape[-1]))
        x = ops.recomputable(GELU, ops.split_pixels(x, 2))
        x = ops.recomputable(ops.layer_norm, torch.cat([labels, flat(x)], dim=2), None, None, 1e-6)
        labels, x = ops.apply(self.refine, x).split([labels.shape[2], height * width], dim=2)
        x = torch.cat([labels, x + flat(patches)], dim=2)
        for block in self.blocks:
            x = run(block, self.checkpointing, x, mods)
        return x


def flat(x: Tensor) -> Tensor:
    """A map as one row, [B, H, W, D] -> [B, 1, H * W, D], which blocks of maps take."""
    return x.flatten(1, 2)[:, None]


class MPDiT(nn.Module):
    """Backbone: x [B, C, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|^modulation\.": init.constant(0.0),
        r"\.(real|imag)$": init.gaussian(1.0),
        r"\.mix\.": init.torch_default,  # a convolution in the release, which initialises Linears only
        r"bias$": init.constant(0.0),
        r"^time\.time\.|^label\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: MPDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, classes, coarsest = config.width, config.num_classes, config.patches[0]
        self.embed = nn.Linear(config.input_channels * coarsest**2, width)
        self.time = SpectralTime(width) if config.time_embedding == "fno" else VectorConditioner(width, 0)
        self.label = nn.Embedding(classes + 1, config.label_tokens * width) if classes else None
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = blocks(config, config.depths[0])
        self.finer = module_list(
            Finer(config, depth, patch) for depth, patch in zip(config.depths[1:], config.patches[1:], strict=True)
        )
        self.out = nn.Linear(width, config.patch**2 * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, H, W]."""
        cond = self.condition(t, y)
        x, skips = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skips, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide."""
        embedded = self.time(t)
        mods = modulations(self.modulation(F.silu(embedded)))
        if self.label is None:
            refuse_labels(y)
            return Conditions(mods, embedded.new_empty(len(t), 0, self.config.width))
        labels = label_rows(self.label, y, t, self.config.null_label)
        return Conditions(mods, labels.unflatten(-1, (self.config.label_tokens, -1)))

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, list[Tensor]]:
        """Labels and coarsest patches, [B, 1, M + N, D], and the patches of each finer level."""
        self.config.check_size(*x.shape[2:])
        skips = [level.patches(x) for level in self.finer]
        x = self.embed(patchify(x, self.config.patches[0]))
        _, height, width, dim = x.shape
        x = x + sincos_table(height, width, dim, device=x.device).to(x.dtype)
        return torch.cat([cond.labels[:, None].to(x.dtype), flat(x)], dim=2), skips

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """The coarsest level's blocks, which step caching keeps: [B, 1, M + N, D]."""
        for block in self.blocks:
            x = run(block, self.checkpointing, x, cond.mods)
        return x

    def leave(self, x: Tensor, skips: Sequence[Tensor], cond: Conditions) -> Tensor:
        """The finer levels, and patches back to pixels: [B, 1, M + N, D] -> [B, out_channels, H, W]."""
        for level, patches in zip(self.finer, skips, strict=True):
            x = level(x, patches, cond.mods)
        x = x[:, 0, cond.labels.shape[1] :].unflatten(1, skips[-1].shape[1:3])
        ffn = cond.mods[1]
        return unpatchify(self.out(ops.modulated_norm(x, ffn.shift, ffn.scale)), self.config.patch)
