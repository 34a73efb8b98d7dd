"""Self-attention on maps.

Axes: B batch, H and W side lengths, D width, h heads, R channels per head, f sub-grids per axis, N tokens per
sub-grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit import ops
from udit.errors import UserError
from udit.nn.hourglass import ScaledNorm
from udit.nn.specs import Downsampled, KVDownsampled, Window
from udit.nn.tokens import rotary_table
from udit.nn.window import join_windows, split_windows, wrap_mask
from udit.ops import to_first, to_last


def check_heads(width: int, heads: int, rope: bool) -> None:
    """Raises UserError unless heads divide the width, and RoPE each head."""
    if width % heads:
        raise UserError(f"width {width} does not split over {heads} heads; choose a multiple")
    if rope and width // heads % 4:
        raise UserError(
            f"width {width} over {heads} heads leaves {width // heads} channels per head; RoPE needs a multiple of 4"
        )


class Attention(nn.Module):
    """Self-attention of all tokens (Vaswani et al. 2017); with ``cosine`` and ``rope`` as U-DiT compares them."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True, cosine: bool = False, rope: bool = False) -> None:
        super().__init__()
        check_heads(width, heads, rope)
        self.heads = heads
        self.rope = rope
        self.logit_scale = nn.Parameter(torch.empty(heads)) if cosine else None
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def positions(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """The rotary table of a map, [2, N, R], or None without RoPE."""
        return rotary_table(height, width, self.qkv.in_features // self.heads, device) if self.rope else None

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokens [B, N, D] or a map [B, H, W, D], to the same shape; ``positions`` as the method of that name makes."""
        qkv = ops.apply(self.qkv, x).reshape(x.shape[0], -1, 3, self.heads, x.shape[-1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = ops.attend(q, k, v, self.logit_scale, positions)
        return ops.apply(self.out, out.transpose(1, 2).reshape(x.shape))


class CrossFusion(nn.Module):
    """Cross-attention of two maps to one another, joined by a matrix (Phung et al. 2024, DiMSUM).

    Args:
        width: D of either map.
        heads: h.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv1 = nn.Linear(width, 3 * width)
        self.qkv2 = nn.Linear(width, 3 * width)
        self.out = nn.Linear(2 * width, 2 * width)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        """Two of [B, H, W, D] -> [B, H, W, 2 D]: first the attention of ``one`` to ``two``."""
        both = torch.stack([ops.apply(self.qkv1, one), ops.apply(self.qkv2, two)], dim=1)
        q, k, v = both.unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k, v = (part.flatten(2, 3).transpose(2, 3) for part in (q, k, v))  # [B, 2, h, N, R]
        out = ops.dot_product_attention(q, k.flip(1), v.flip(1))
        return ops.apply(self.out, out.permute(0, 3, 1, 2, 4).reshape(*one.shape[:3], -1))


class LowPass(nn.Module):
    """A convolution that keeps the map's size: depthwise, or with ``dense`` of every channel with every channel.

    Args:
        width: D.
        side: of the kernel, odd.
        shortcut: the map itself is added; this is folded into the kernel.
        dense: see above.
    """

    def __init__(self, width: int, side: int, shortcut: bool, dense: bool = False) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.groups = 1 if dense else width
        self.weight = nn.Parameter(torch.empty(width, width // self.groups, side, side))
        self.bias = nn.Parameter(torch.empty(width))

    def kernel(self) -> Tensor:
        """[D, 1 or D, s, s], the shortcut folded in."""
        if not self.shortcut:
            return self.weight
        inner, side = self.weight.shape[1:3]
        identity = torch.eye(inner, dtype=self.weight.dtype, device=self.weight.device)[:, :, None, None]
        return self.weight + F.pad(identity, [side // 2] * 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        kernel = self.kernel()
        if self.groups > 1:
            return ops.depthwise(x, kernel, self.bias)
        return to_last(F.conv2d(to_first(x), kernel, self.bias, padding=kernel.shape[-1] // 2))

    def folded(self) -> dict[str, Tensor]:
        """State of the same filter without shortcut."""
        return {"weight": self.kernel(), "bias": self.bias}


class DownsampledAttention(nn.Module):
    """Self-attention within the interleaved sub-grids of a low-pass filtered map (Tian et al. 2024, Sec. 3.2)."""

    def __init__(self, spec: Downsampled, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads, spec.rope)
        self.spec = spec
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.empty(heads)) if spec.cosine else None
        self.filter = LowPass(width, spec.kernel, spec.shortcut, spec.dense) if spec.kernel else None
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def positions(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """The rotary table of a map's sub-grids, [2, N, R], or None without RoPE."""
        if not self.spec.rope:
            return None
        factor = self.spec.factor
        return rotary_table(height // factor, width // factor, self.qkv.in_features // self.heads, device)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; ``positions`` as the method of that name makes them."""
        if self.filter is not None:
            x = self.filter(x)
        qkv = ops.apply(self.qkv, x)
        x = ops.grid_attention(qkv, self.logit_scale, positions, heads=self.heads, factor=self.spec.factor)
        return ops.apply(self.out, x)


class KVDownsampledAttention(nn.Module):
    """Attention of every pixel to the means of f x f pixels of a low-pass filtered map; see the spec."""

    def __init__(self, spec: KVDownsampled, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads, spec.rope)
        self.spec = spec
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.empty(heads)) if spec.cosine else None
        self.filter = LowPass(width, spec.kernel, spec.shortcut) if spec.kernel else None
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def positions(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """The rotary tables of the pixels and then of the coarse ones, [2, N + N / f**2, R], or None without RoPE."""
        if not self.spec.rope:
            return None
        channels, factor = self.q.in_features // self.heads, self.spec.factor
        keys = rotary_table(height // factor, width // factor, channels, device, step=factor)
        return torch.cat([rotary_table(height, width, channels, device), keys], dim=1)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; ``positions`` as the method of that name makes them."""
        b, height, width, _ = x.shape
        coarse = x if self.filter is None else self.filter(x)
        coarse = to_last(F.avg_pool2d(to_first(coarse), self.spec.factor))
        q = ops.apply(self.q, x).view(b, height * width, self.heads, -1).transpose(1, 2)
        k, v = ops.apply(self.kv, coarse).reshape(b, -1, 2, self.heads, q.shape[-1]).permute(2, 0, 3, 1, 4)
        table, key_table = (None, None) if positions is None else positions.split([q.shape[2], k.shape[2]], dim=1)
        out = ops.attend(q, k, v, self.logit_scale, table, key_table)
        return ops.apply(self.out, out.transpose(1, 2).reshape(x.shape))


class WindowAttention(nn.Module):
    """Self-attention within windows, shifted up and left by ``shift`` pixels; see the spec."""

    def __init__(self, spec: Window, width: int, heads: int, shift: int) -> None:
        super().__init__()
        check_heads(width, heads, spec.rope)
        self.spec = spec
        self.heads = heads
        self.shift = shift
        self.logit_scale = nn.Parameter(torch.empty(heads)) if spec.cosine else None
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def window(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of a window of a map: no more than the map has."""
        return min(self.spec.size, height), min(self.spec.size, width)

    def positions(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """The rotary table of one window, [2, N, R], or None without RoPE: only differences of positions count."""
        if not self.spec.rope:
            return None
        return rotary_table(*self.window(height, width), self.qkv.in_features // self.heads, device)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]; ``positions`` as the method of that name makes them."""
        height, width = x.shape[1:3]
        window = self.window(height, width)
        shift = self.shift * (window[0] < height), self.shift * (window[1] < width)
        qkv = ops.apply(self.qkv, x)
        mask = None
        if any(shift):
            qkv = qkv.roll(shift, dims=(1, 2))
            mask = wrap_mask(height, width, window, shift, x.device)
        out = attend_in_windows(qkv, self.heads, window, self.logit_scale, positions, mask)
        return ops.apply(self.out, out.roll([-s for s in shift], dims=(1, 2)) if any(shift) else out)


def attend_in_windows(
    qkv: Tensor,
    heads: int,
    window: tuple[int, int],
    logit_scale: Tensor | None,
    positions: Tensor | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention within windows.

    Args:
        qkv: [B, H, W, 3 h R].
        heads: h.
        window: rows and columns of a window; they divide H and W.
        logit_scale: [h] of cosine attention, or None.
        positions: the rotary table of one window, or None.
        mask: of ``wrap_mask``, or None.

    Returns:
        [B, H, W, h R].
    """
    b, height, width, _ = qkv.shape
    q, k, v = (split_windows(part, window) for part in qkv.unflatten(-1, (3, heads, -1)).unbind(-3))
    scale = None if logit_scale is None else logit_scale.repeat(b)  # heads of every sample in turn
    out = ops.attend(q, k, v, scale, positions, mask=mask)
    return join_windows(out, window, height, width, heads).flatten(-2)


class QKNormAttention(nn.Module):
    """``Attention`` whose queries and keys are normalised head by head, by RMSNorm, before they turn."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        check_heads(width, heads, rope=False)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = ScaledNorm(width // heads)
        self.k_norm = ScaledNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Tokens [B, N, D] or a map [B, H, W, D], to the same shape; ``positions`` a rotary table [2, N, R] or None."""
        qkv = ops.apply(self.qkv, x).reshape(x.shape[0], -1, 3, self.heads, x.shape[-1] // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = ops.attend(self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v, None, positions)
        return ops.apply(self.out, out.transpose(1, 2).reshape(x.shape))
