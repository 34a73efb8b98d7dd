"""Windows whose content is linked by high frequencies, in place of shifting them (after Swin DiT; ours).

Axes: B batch, H and W side lengths, D width, h heads in windows, R channels per head, E channels of the bridge.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udit import ops
from udit.nn.attention import attend_in_windows, check_heads
from udit.nn.specs import BridgedWindow
from udit.nn.tokens import rotary_table


class BridgedWindowAttention(nn.Module):
    """Self-attention of some heads within windows; the channels of the others pass a high-pass filter; see the spec."""

    def __init__(self, spec: BridgedWindow, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads, spec.rope)
        self.spec, self.heads, self.channels = spec, heads - spec.bridge_heads, width // heads
        bridge = spec.bridge_heads * self.channels
        self.logit_scale = nn.Parameter(torch.empty(self.heads)) if spec.cosine else None
        self.qkv = nn.Linear(width, 3 * self.heads * self.channels)
        self.bridge = nn.Linear(width, bridge)
        self.filter = HighPass(bridge, spec.kernel)
        self.out = nn.Linear(width, width)

    def window(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of a window of a map: no more than the map has."""
        return min(self.spec.size, height), min(self.spec.size, width)

    def positions(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """The rotary table of one window, [2, N, R], or None without RoPE."""
        return rotary_table(*self.window(height, width), self.channels, device) if self.spec.rope else None

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; ``positions`` as the method of that name makes them."""
        window = self.window(*x.shape[1:3])
        within = attend_in_windows(ops.apply(self.qkv, x), self.heads, window, self.logit_scale, positions)
        between = self.filter(ops.apply(self.bridge, x))
        return ops.apply(self.out, torch.cat([within, between], dim=-1))


class HighPass(nn.Module):
    """A depthwise convolution whose kernels sum to 0: what is the same all over its square becomes the bias."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, side, side))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, E] -> [B, H, W, E]."""
        return ops.depthwise(x, self.weight - self.weight.mean(dim=(2, 3), keepdim=True), self.bias)
