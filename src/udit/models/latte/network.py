"""Latte (Ma et al. 2024, arXiv 2401.03048), written out.

Axes: B batch, C input channels, F frames, H and W side lengths, p patch side, h and w rows and columns of patches, D
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.latte.config import LatteConfig
from udit.nn import init
from udit.nn.blocks import module_list, run
from udit.nn.clips import ClipBlock, frames_as_images, images_as_frames
from udit.nn.conditioning import AdaLNConditions, VectorConditioner
from udit.nn.tokens import patchify, sincos_axis, sincos_table, unpatchify
from udit.ops.transfer import sent


class Latte(nn.Module):
    """Backbone: x [B, C, F, H, W], t [B], y [B] int64 or None (= null) -> [B, out_channels, F, H, W]."""

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^out\.|modulation\.|bias$": init.constant(0.0),
        r"^conditioner\.": init.gaussian(0.02),
        r"": init.xavier,
    }

    def __init__(self, config: LatteConfig) -> None:
        super().__init__()
        self.config = config
        width, area = config.width, config.patch**2
        self.embed = nn.Linear(config.input_channels * area, width)
        self.conditioner = VectorConditioner(width, config.num_classes)
        self.blocks = module_list(
            ClipBlock(width, config.heads, config.ffn.build(width), along_time=index % 2 == 1)
            for index in range(config.depth)
        )
        self.out_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, area * config.out_channels)
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, F, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, F, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> AdaLNConditions:
        """Everything that (t, y) decide."""
        cond = F.silu(self.conditioner(t, y))
        blocks = [block.condition(cond) for block in self.blocks]
        return AdaLNConditions(blocks, self.out_modulation(cond)[:, None, None].chunk(2, dim=-1))

    def enter(self, x: Tensor, cond: AdaLNConditions) -> tuple[Tensor, None]:
        """Patches of each frame, and the first blocks: [B, C, F, H, W] -> [B, F, h, w, D], and no skip."""
        self.config.check_clip(x.shape)
        frames = x.shape[2]
        x = self.embed(patchify(frames_as_images(x), self.config.patch))
        x = x + sincos_table(x.shape[1], x.shape[2], self.config.width, x.device).to(x.dtype)
        return self.through(x.unflatten(0, (-1, frames)), cond, range(self.config.outer)), None

    def deep(self, x: Tensor, cond: AdaLNConditions) -> Tensor:
        """The blocks between, whose sum step caching keeps. [B, F, h, w, D]."""
        return self.through(x, cond, range(self.config.outer, self.config.depth - self.config.outer))

    def leave(self, x: Tensor, skip: None, cond: AdaLNConditions) -> Tensor:
        """The last blocks, and patches back to pixels: [B, F, h, w, D] -> [B, out_channels, F, H, W]."""
        x = self.through(x, cond, range(self.config.depth - self.config.outer, self.config.depth))
        frames = x.shape[1]
        x = self.out(ops.modulated_norm(x.flatten(1, 2), *cond.out)).unflatten(1, (frames, -1))
        return images_as_frames(unpatchify(x.flatten(0, 1), self.config.patch), frames)

    def through(self, x: Tensor, cond: AdaLNConditions, blocks: range) -> Tensor:
        """Runs blocks on [B, F, h, w, D]; the first one along time is the first that sees which frame is which."""
        for i in blocks:
            if i == 1:
                x = x + self.times(x.shape[1], x.device).to(x.dtype)[:, None, None]
            x = run(self.blocks[i], self.checkpointing, x, cond.blocks[i])
        return x

    def times(self, frames: int, device: torch.device | None = None) -> Tensor:
        """Fixed positions of frames, [F, D]."""
        return sent(sincos_axis(torch.arange(frames, device="cpu"), self.config.width), device)
