"""Self-attention on maps.

Axes: B batch, H and W side lengths, D width, h heads, R channels a head, f sub-grids an axis, N tokens of a sub-grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.config.parts import Downsampled
from udit.errors import UserError
from udit.nn.ffn import composed_depthwise
from udit.nn.tokens import rotary_table, rotate, to_first, to_last

MAX_LOGIT_SCALE = 4.6052  # the release's bound on the log temperature: about ln 100


def cosine_attention(q: Tensor, k: Tensor, v: Tensor, logit_scale: Tensor, table: Tensor | None) -> Tensor:
    """Attention by cosine similarity with a learned temperature per head (Liu et al. 2022, Swin v2).

    q and k are turned and normalised in float32 at least (float16 zero rows give NaN otherwise), the temperature folds
    into q.

    Args:
        q, k, v: [..., h, N, R].
        logit_scale: [h] log temperature, bounded above by ln 100.
        table: rotary table [2, N, R] or None.

    Returns:
        [..., h, N, R] in v's dtype.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    temperature = logit_scale.to(precise).clamp(max=MAX_LOGIT_SCALE).exp()[:, None, None]
    q, k = q.to(precise), k.to(precise)
    if table is not None:  # before the norm, which takes the table's float32 rounding out again
        q, k = rotate(q, table), rotate(k, table)
    q, k = F.normalize(q, dim=-1, eps=1e-12) * temperature, F.normalize(k, dim=-1, eps=1e-12)
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, scale=1.0)


class Attention(nn.Module):
    """Self-attention of all tokens (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, D], or a map of them [B, H, W, D], to the same shape."""
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, self.heads, x.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


def split_grids(x: Tensor, factor: int, groups: int, heads: int) -> Tensor:
    """Interleaved sub-grids of a map, as attention wants them.

    Args:
        x: [B, H, W, groups * h * R]; factor divides H and W.
        factor: f.
        groups: 3 for queries, keys and values together.
        heads: h.

    Returns:
        [groups, B * f**2, h, H / f * W / f, R]; sub-grid (a, e) holds pixels (i * f + a, j * f + e).
    """
    b, height, width, channels = x.shape
    h, w = height // factor, width // factor
    x = x.view(b, h, factor, w, factor, groups, heads, channels // (groups * heads))
    return x.permute(5, 0, 2, 4, 6, 1, 3, 7).reshape(groups, b * factor**2, heads, h * w, -1)


def join_grids(x: Tensor, factor: int, height: int, width: int) -> Tensor:
    """The way back: [B * f**2, h, N, R] -> [B, H, W, h * R]."""
    h, w = height // factor, width // factor
    heads, channels = x.shape[1], x.shape[3]
    x = x.view(-1, factor, factor, heads, h, w, channels).permute(0, 4, 1, 5, 2, 3, 6)
    return x.reshape(-1, height, width, heads * channels)


class DownsampledAttention(nn.Module):
    """Self-attention within the interleaved sub-grids of a low-pass filtered map (Tian et al. 2024, Sec. 3.2)."""

    def __init__(self, spec: Downsampled, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} does not split over {heads} heads; choose a multiple")
        if spec.rope and width // heads % 4:
            raise UserError(
                f"width {width} over {heads} heads leaves {width // heads} channels a head; RoPE needs a multiple of 4"
            )
        self.spec = spec
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.empty(heads)) if spec.cosine else None
        self.filter = (
            nn.Conv2d(width, width, spec.kernel, padding=spec.kernel // 2, groups=width) if spec.kernel else None
        )
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
        _, height, width, _ = x.shape
        if self.filter is not None:
            kernel, bias = self.filter_weights()
            x = to_last(F.conv2d(to_first(x), kernel, bias, padding=self.spec.kernel // 2, groups=x.shape[-1]))
        q, k, v = split_grids(self.qkv(x), self.spec.factor, 3, self.heads)
        if self.logit_scale is not None:
            out = cosine_attention(q, k, v, self.logit_scale, positions)
        else:
            if positions is not None:
                q, k = rotate(q, positions), rotate(k, positions)
            out = F.scaled_dot_product_attention(q, k, v)
        return self.out(join_grids(out, self.spec.factor, height, width))

    def filter_weights(self) -> tuple[Tensor, Tensor]:
        """Kernel [D, 1, s, s] and bias [D] of the low-pass filter, the shortcut folded in."""
        assert self.filter is not None and self.filter.bias is not None
        if not self.spec.shortcut:
            return self.filter.weight, self.filter.bias
        return composed_depthwise([self.filter])

    def folded(self) -> dict[str, Tensor]:
        """State of the same attention built from ``spec.folded()``."""
        state = dict(self.state_dict())
        if self.filter is not None:
            state["filter.weight"], state["filter.bias"] = self.filter_weights()
        return state
