"""Parts of networks of clips: frames as images, and blocks that attend within frames or along time.

Axes: B batch, C channels, F frames, H and W side lengths, h and w those of a map, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from udit import ops
from udit.nn.attention import Attention
from udit.nn.conditioning import Modulation, modulations


def frames_as_images(x: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B * F, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def images_as_frames(x: Tensor, frames: int) -> Tensor:
    """The inverse of ``frames_as_images``."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def within_frames(attention: nn.Module, x: Tensor) -> Tensor:
    """Attention of each frame's tokens among themselves, [B, F, h, w, D]."""
    out: Tensor = attention(x.flatten(0, 1).flatten(1, 2))
    return out.view(x.shape)


def repeated(tree: Any, frames: int) -> Any:
    """Conditions of clips as those of their frames: every row of every tensor in nested tuples and lists, F times."""
    if isinstance(tree, Tensor):
        return tree.repeat_interleave(frames, dim=0)
    parts = [repeated(part, frames) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def along_time(attention: nn.Module, x: Tensor, *positions: Tensor) -> Tensor:
    """Attention of the tokens at one place of all frames among themselves, [B, F, h, w, D]; a rotary table, or none."""
    b, frames, height, width, dim = x.shape
    places = x.reshape(b, frames, height * width, dim).transpose(1, 2)
    out: Tensor = attention(places.reshape(b * height * width, frames, dim), *positions)
    return out.view(b, height * width, frames, dim).transpose(1, 2).reshape(x.shape)


class ClipBlock(nn.Module):
    """Attention within frames or along time, and an FFN, modulated and gated as in DiT (Ma et al. 2024, Latte)."""

    def __init__(self, width: int, heads: int, ffn: nn.Module, along_time: bool) -> None:
        super().__init__()
        self.along_time = along_time
        self.attention = Attention(width, heads)
        self.ffn = ffn
        self.modulation = nn.Linear(width, 6 * width)

    def condition(self, cond: Tensor) -> tuple[Modulation, Modulation]:
        """SiLU'd condition [B, D] -> modulations of attention and FFN."""
        return modulations(self.modulation(cond))

    def forward(self, x: Tensor, mods: tuple[Modulation, Modulation]) -> Tensor:
        """x [B, F, h, w, D], ``condition``'s result -> [B, F, h, w, D]."""
        one, two = mods
        shape, x = x.shape, x.flatten(1, 2)
        mix = along_time if self.along_time else within_frames
        mixed = mix(self.attention, ops.modulated_norm(x, one.shift, one.scale).view(shape))
        x = ops.gated_sum(x, one.gate, mixed.flatten(1, 2))
        return ops.gated_sum(x, two.gate, self.ffn(ops.modulated_norm(x, two.shift, two.scale))).view(shape)


def patchify_clips(x: Tensor, frames: int, side: int) -> Tensor:
    """Cuts a clip into blocks, each a vector (channel, frame, row, column) as a convolution's weight is.

    Args:
        x: [B, C, F, H, W].
        frames: of a block, q.
        side: of a block, p.

    Returns:
        [B, F / q, H / p, W / p, C * q * p * p].
    """
    b, channels, count, height, width = x.shape
    x = x.reshape(b, channels, count // frames, frames, height // side, side, width // side, side)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def unpatchify_clips(x: Tensor, frames: int, side: int) -> Tensor:
    """Lays out blocks, each a vector (frame, row, column, channel): [B, f, h, w, q p p C] -> [B, C, f q, h p, w p]."""
    b, count, height, width, _ = x.shape
    x = x.reshape(b, count, height, width, frames, side, side, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, -1, count * frames, height * side, width * side)
