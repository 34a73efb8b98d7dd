"""U-DiT as its release computes it, a baseline for timing: channels first, no fused operators.

RoPE in complex numbers, attention matrices written out, one matrix product of the condition per block, the FFN fused
for inference and unfused in training. Parameters have the release's key names, so that ``udit.export_published`` of one
of our models loads into it; both compute the same numbers (``tests/test_bench.py``).

    udit bench U-DiT-S --baseline benchmarks/literal.py:LiteralUDiT
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udit.models.udit.config import UDiTConfig


class TimestepEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        angles = t[:, None].float() * frequencies[None]
        return self.mlp(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))


class LabelEmbedder(nn.Module):
    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def rotation(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Complex RoPE table [N, channels / 2]: even pairs rotate with the column, odd ones with the row."""
    frequencies = 1.0 / (10000 ** (torch.arange(0, channels, 4, device=device).float() / channels))
    p = torch.arange(height * width, device=device).float()
    angles = torch.stack([torch.outer(p % width, frequencies), torch.outer(p // width, frequencies)], dim=-1)
    angles = angles.flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def turn(x: Tensor, table: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table).flatten(-2).type_as(x)


class Downsampler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(width, width, 5, padding=2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(heads, 1, 1)))
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Conv2d(width, width, 1)
        self.downsampler = Downsampler(width)

    def forward(self, x: Tensor) -> Tensor:
        b, d, height, width = x.shape
        h, w = height // 2, width // 2
        x = self.downsampler(x)
        x = x.reshape(b, d, h, 2, w, 2).permute(0, 3, 5, 2, 4, 1).reshape(b, 4, h * w, d)
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (part.reshape(b, 4, h * w, self.heads, -1).transpose(2, 3) for part in (q, k, v))
        table = rotation(h, w, d // self.heads, x.device)
        q, k = turn(q, table), turn(k, table)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        logits = logits * torch.clamp(self.logit_scale, max=4.6052).exp()
        x = torch.softmax(logits, dim=-1) @ v
        x = x.transpose(2, 3).reshape(b, 2, 2, h, w, d).permute(0, 5, 3, 1, 4, 2).reshape(b, d, height, width)
        return self.to_out(x)


class FeedForward(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = round(ratio * width)
        middle = hidden // 2
        self.project_in = nn.Sequential(nn.Conv2d(width, middle, 1), nn.Conv2d(middle, hidden, 1))
        self.dwconv = nn.ModuleList(nn.Conv2d(hidden, hidden, k, padding=k // 2, groups=hidden) for k in (5, 3, 1))
        self.project_out = nn.Sequential(nn.Conv2d(hidden, middle, 1), nn.Conv2d(middle, width, 1))
        self.folded: list[Tensor] | None = None

    @torch.no_grad()
    def fold(self) -> None:
        """Stores the fused weights in addition to the parameters, which are not changed."""
        self.folded = []
        for first, second in (self.project_in, self.project_out):
            weight = second.weight[:, :, 0, 0] @ first.weight[:, :, 0, 0]
            bias = second.weight[:, :, 0, 0] @ first.bias + second.bias
            self.folded += [weight[:, :, None, None].contiguous(), bias]
        five, three, one = self.dwconv
        kernel = five.weight + F.pad(three.weight, [1] * 4) + F.pad(one.weight + 1, [2] * 4)
        self.folded += [kernel, five.bias + three.bias + one.bias]

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.folded is None:
            x = F.gelu(self.project_in(x))
            x = x + sum(conv(x) for conv in self.dwconv)
            return self.project_out(x)
        enter, enter_bias, leave, leave_bias, kernel, bias = self.folded
        x = F.gelu(F.conv2d(x, enter, enter_bias))
        x = F.conv2d(x, kernel, bias, padding=2, groups=x.shape[1])
        return F.conv2d(x, leave, leave_bias)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=1e-6).permute(0, 3, 1, 2).contiguous()


class Block(nn.Module):
    """Two pairs of attention and FFN."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        for k in (1, 2):
            self.add_module(f"attn{k}", Attention(width, heads))
            self.add_module(f"mlp{k}", FeedForward(width, ratio))
            self.add_module(f"adaLN_modulation{k}", nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        pairs = (self.attn1, self.mlp1, self.adaLN_modulation1), (self.attn2, self.mlp2, self.adaLN_modulation2)
        for attention, mlp, modulation in pairs:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation(c).chunk(6, dim=1)
            x = x + gate1[:, :, None, None] * attention(modulate(norm(x), shift1, scale1))
            x = x + gate2[:, :, None, None] * mlp(modulate(norm(x), shift2, scale2))
        return x


class FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.out_proj = nn.Conv2d(width, channels, 3, padding=1)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.out_proj(modulate(norm(x), shift, scale))


class Named(nn.Module):
    """A layer under a name of its own, where the release's keys have one more part."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.name)(x)


class LiteralUDiT(nn.Module):
    """U-DiT backbone of three levels; the config must be unfused."""

    def __init__(self, config: UDiTConfig) -> None:
        super().__init__()
        assert (
            config.levels == 3
            and config.num_classes
            and config
            == UDiTConfig(
                **{key: getattr(config, key) for key in ("width", "heads", "depths", "in_channels", "num_classes")},
                input_size=config.input_size,
                learn_sigma=config.learn_sigma,
            )
        ), "the release has three levels and one kind of block"
        self.config = config
        c, d = config.width, config.depths

        def level(width: int, depth: int) -> nn.ModuleList:
            return nn.ModuleList(Block(width, config.heads, config.ffn.ratio) for _ in range(depth))

        def resample(inner: int, outer: int, shuffle: nn.Module) -> Named:
            return Named("body", nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1, bias=False), shuffle))

        self.x_embedder = Named("proj", nn.Conv2d(config.in_channels, c, 3, padding=1))
        for i, width in ((1, c), (2, 2 * c), (3, 4 * c)):
            self.add_module(f"t_embedder_{i}", TimestepEmbedder(width))
            self.add_module(f"y_embedder_{i}", LabelEmbedder(config.num_classes, width))
        self.encoder_level_1 = level(c, d[0])
        self.down1_2 = resample(c, c // 2, nn.PixelUnshuffle(2))
        self.encoder_level_2 = level(2 * c, d[1])
        self.down2_3 = resample(2 * c, c, nn.PixelUnshuffle(2))
        self.latent = level(4 * c, d[2])
        self.up3_2 = resample(4 * c, 8 * c, nn.PixelShuffle(2))
        self.reduce_chan_level2 = nn.Conv2d(4 * c, 2 * c, 1)
        self.decoder_level_2 = level(2 * c, d[3])
        self.up2_1 = resample(2 * c, 4 * c, nn.PixelShuffle(2))
        self.reduce_chan_level1 = nn.Conv2d(2 * c, 2 * c, 1)
        self.decoder_level_1 = level(2 * c, d[4])
        self.output = nn.Conv2d(2 * c, 2 * c, 3, padding=1)
        self.final_layer = FinalLayer(2 * c, config.out_channels)

    def fold(self) -> LiteralUDiT:
        """Fuses every FFN for inference; returns itself, in eval mode."""
        for module in self.modules():
            if isinstance(module, FeedForward):
                module.fold()
        return self.eval()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x [B, C, H, W], t [B], y [B] -> [B, out_channels, H, W]."""
        x = self.x_embedder(x)
        c1 = self.t_embedder_1(t) + self.y_embedder_1(y)
        c2 = self.t_embedder_2(t) + self.y_embedder_2(y)
        c3 = self.t_embedder_3(t) + self.y_embedder_3(y)
        for block in self.encoder_level_1:
            x = block(x, c1)
        skip1 = x
        x = self.down1_2(x)
        for block in self.encoder_level_2:
            x = block(x, c2)
        skip2 = x
        x = self.down2_3(x)
        for block in self.latent:
            x = block(x, c3)
        x = self.reduce_chan_level2(torch.cat([self.up3_2(x), skip2], dim=1))
        for block in self.decoder_level_2:
            x = block(x, c2)
        x = self.reduce_chan_level1(torch.cat([self.up2_1(x), skip1], dim=1))
        for block in self.decoder_level_1:
            x = block(x, c2)
        return self.final_layer(self.output(x), c2)
