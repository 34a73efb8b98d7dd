"""U-DiT on clips (ours), written out: the network of images on each frame, with attention along time between stages.

Axes: B batch, C input channels, F frames, H and W side lengths, D width at full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.models.udit.network import Conditions as FrameConditions
from udit.models.udit.network import Mods, Stage, UDiT
from udit.models.udit_video.config import UDiTVideoConfig
from udit.nn import init
from udit.nn.attention import Attention
from udit.nn.blocks import module_list
from udit.nn.clips import along_time, frames_as_images, images_as_frames, repeated
from udit.nn.conditioning import Modulation
from udit.nn.rotary import axial_rotary_grid
from udit.ops import convolve_image, to_first


class TimeAttention(nn.Module):
    """Attention among the frames of one place, with rotary positions, modulated and gated; at first it adds nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.modulation = nn.Linear(width, 3 * width)

    def condition(self, cond: Tensor) -> Modulation:
        """SiLU'd condition [B, D] -> its modulation."""
        return Modulation(*self.modulation(cond)[:, None, None].chunk(3, dim=-1))

    def forward(self, x: Tensor, mod: Modulation) -> Tensor:
        """[B * F, H, W, D], ``condition``'s result of each clip [B, 1, 1, D] -> [B * F, H, W, D]."""
        clips = x.unflatten(0, (mod.gate.shape[0], -1))
        table = axial_rotary_grid((clips.shape[1],), (x.shape[-1] // self.attention.heads,), x.device)
        flat = clips.flatten(1, 2)
        normed = ops.modulated_norm(flat, mod.shift, mod.scale).view(clips.shape)
        mixed = along_time(self.attention, normed, table)
        return ops.gated_sum(flat, mod.gate, mixed.flatten(1, 2)).view(x.shape)


class Conditions(NamedTuple):
    """All of the network that depends on (t, y) alone, each clip once."""

    frames: FrameConditions
    encoder: list[Modulation]
    """Of attention along time, level by level; the bottleneck's last."""
    decoder: list[Modulation]


class UDiTVideo(nn.Module):
    """Backbone: x [B, C, F, H, W], t [B], y as of U-DiT -> [B, out_channels, F, H, W].

    ``images`` is a whole U-DiT, whose weights may come from one that was trained on images; before training the network
    is that one on each frame.
    """

    INIT: ClassVar[Mapping[str, init.Fill]] = {
        r"^images\.out\.|modulation\.": init.constant(0.0),
        r"logit_scale$": init.constant(math.log(10)),
        r"bias$": init.constant(0.0),
        r"^images\.conditioners\.": init.gaussian(0.02),
        r"^images\.stem\.weight$": init.xavier_flat,
        r"": init.xavier,
    }

    def __init__(self, config: UDiTVideoConfig) -> None:
        super().__init__()
        self.config = config
        self.images = UDiT(config)
        widths = [config.width * 2**level for level in range(config.levels)]
        outward = [widths[min(1, len(widths) - 1)], *widths[1:-1]] if config.levels > 1 else []
        self.encoder_time = module_list(TimeAttention(width, config.heads) for width in widths)
        self.decoder_time = module_list(TimeAttention(width, config.heads) for width in outward)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, F, H, W], t [B] in ``config.time`` units, y [B] -> [B, out_channels, F, H, W]."""
        cond = self.condition(t, y)
        x, skip = self.enter(x, cond)
        x = self.deep(x, cond)
        return self.leave(x, skip, cond)

    def condition(self, t: Tensor, y: Tensor | None = None) -> Conditions:
        """Everything that (t, y) decide; attention along time takes each level's condition too."""
        images = self.images
        by_level = y is not None and y.ndim == 2 and not y.is_floating_point()
        labels = y.unbind(1) if y is not None and by_level else [y] * len(images.conditioners)
        conds = [F.silu(embed(t, label)) for embed, label in zip(images.conditioners, labels, strict=True)]
        outward = [conds[min(1, len(conds) - 1)], *conds[1:-1]]
        encoder = [each.condition(c) for each, c in zip(self.encoder_time, conds, strict=True)]
        decoder = [each.condition(c) for each, c in zip(self.decoder_time, outward, strict=False)]
        return Conditions(images.condition(t, y), encoder, decoder)

    def enter(self, x: Tensor, cond: Conditions) -> tuple[Tensor, Tensor | None]:
        """Full resolution in: [B, C, F, H, W] -> the maps and their skip, [B, F, H, W, D]; one level has no skip."""
        self.config.check_clip(x.shape)
        frames = x.shape[2]
        x = convolve_image(self.images.stem, frames_as_images(x))
        if len(self.images.encoder) > 1:
            x = self.encode(x, 0, cond)
            return (clips := x.unflatten(0, (-1, frames))), clips
        return x.unflatten(0, (-1, frames)), None

    def deep(self, x: Tensor, cond: Conditions) -> Tensor:
        """All below full resolution, which step caching keeps: [B, F, H, W, D] -> [B, F, H, W, D]."""
        images, frames = self.images, x.shape[1]
        x = x.flatten(0, 1)
        skips: list[Tensor] = []
        for level in range(1, len(images.encoder)):
            x = self.encode(images.merge[level - 1](x), level, cond)
            skips.append(x)
        if not skips:
            return self.encode(x, 0, cond).unflatten(0, (-1, frames))
        for level in range(len(images.decoder) - 1, 0, -1):
            x = self.decode(images.join(images.split[level](x), skips[level - 1], level), level, cond)
        return images.split[0](x).unflatten(0, (-1, frames))

    def leave(self, x: Tensor, skip: Tensor | None, cond: Conditions) -> Tensor:
        """Full resolution out: [B, F, H, W, D] and the skip -> [B, out_channels, F, H, W]."""
        images, frames = self.images, x.shape[1]
        x = x.flatten(0, 1)
        if skip is not None:
            x = self.decode(images.join(x, skip.flatten(0, 1), 0), 0, cond)
        x = ops.convolve(images.mix, x)
        x = ops.modulated_norm(x, *repeated(cond.frames.out, frames))
        return images_as_frames(to_first(ops.convolve(images.out, x)), frames)

    def encode(self, x: Tensor, level: int, cond: Conditions) -> Tensor:
        """The encoder's stage of a level, then attention along time: [B * F, H, W, D]."""
        return _stage(self.images.encoder[level], self.encoder_time[level], x, cond.frames.encoder, cond.encoder, level)

    def decode(self, x: Tensor, level: int, cond: Conditions) -> Tensor:
        """The decoder's stage of a level, then attention along time: [B * F, H, W, D]."""
        return _stage(self.images.decoder[level], self.decoder_time[level], x, cond.frames.decoder, cond.decoder, level)


def _stage(
    stage: Stage, time: TimeAttention, x: Tensor, mods: Sequence[Mods], times: Sequence[Modulation], level: int
) -> Tensor:
    clips = times[level].gate.shape[0]
    return time(stage(x, repeated(mods[level], x.shape[0] // clips)), times[level])
