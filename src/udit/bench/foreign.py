"""diffusers' networks as baselines, sized to the MACs of a network of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from udit.analysis import cost
from udit.bench.subjects import Subject
from udit.config.model import ModelConfig


class Foreign(nn.Module):
    """diffusers' calling convention turned into ours."""

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B], y [B] -> [B, out_channels, H, W]."""
        return self.network(x, t, class_labels=y, return_dict=False)[0]


def _dit(config: ModelConfig) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    from diffusers import DiTTransformer2DModel

    for heads in (2, 3, 4, 6, 8, 12, 16, 18):
        for layers in (6, 8, 10, 12, 14, 16, 20, 24, 28):
            if not heads <= layers <= 4 * heads:  # the proportions of DiT's own sizes
                continue
            values: dict[str, Any] = {
                "num_attention_heads": heads,
                "attention_head_dim": 64,
                "num_layers": layers,
                "in_channels": config.in_channels,
                "out_channels": config.out_channels,
                "sample_size": config.size[0],
                "num_embeds_ada_norm": max(1, config.num_classes),
            }
            yield f"{layers} layers of {64 * heads}", lambda values=values: DiTTransformer2DModel(**values)  # type: ignore[misc]


def _unet(config: ModelConfig) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    from diffusers import UNet2DModel

    for width in range(32, 417, 32):
        values: dict[str, Any] = {
            "sample_size": config.size,
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "block_out_channels": (width, 2 * width, 4 * width),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 32,
            "num_class_embeds": config.num_classes + 1 if config.num_classes else None,
        }
        yield f"width {width}", lambda values=values: UNet2DModel(**values)  # type: ignore[misc]


def _nearest(
    name: str, sizes: Callable[[ModelConfig], Iterator[tuple[str, Callable[[], nn.Module]]]]
) -> Callable[[ModelConfig], Subject]:
    def of(config: ModelConfig) -> Subject:
        wanted = cost(config).macs
        subjects = [
            Subject(f"diffusers {name}, {size}", config, lambda make=make: Foreign(make(), config), lambda model: model)  # type: ignore[misc]
            for size, make in sizes(config)
        ]
        return min(subjects, key=lambda subject: abs(subject.flops(1, config.size, training=False) / 2 - wanted))

    return of


MAKERS: Mapping[str, Callable[[ModelConfig], Subject]] = {
    "DiTTransformer2DModel": _nearest("DiTTransformer2DModel", _dit),
    "UNet2DModel": _nearest("UNet2DModel", _unet),
}
"""Class -> the network of the nearest MACs among its sizes."""
