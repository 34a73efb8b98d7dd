"""diffusers' networks as baselines, with about the MACs of a network of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from udit.analysis import cost
from udit.benchmarking.subjects import Subject, dit_of_equal_macs
from udit.models.config import ModelConfig


class Foreign(nn.Module):
    """A diffusers network with this library's signature."""

    def __init__(self, network: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B], y [B] -> [B, out_channels, H, W]."""
        return self.network(x, t, class_labels=y, return_dict=False)[0]


def _dit(config: ModelConfig) -> Subject:
    layers, width = dit_of_equal_macs(config)

    def make() -> nn.Module:
        from diffusers import DiTTransformer2DModel

        network = DiTTransformer2DModel(
            num_attention_heads=width // 64,
            attention_head_dim=64,
            num_layers=layers,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            sample_size=config.size[0],
            num_embeds_ada_norm=max(1, config.num_classes),
        )
        return Foreign(cast(nn.Module, network), config)

    return Subject(f"diffusers DiTTransformer2DModel, {layers} layers of {width}", config, make, _as_is)


def _unet(config: ModelConfig) -> Subject:
    """At the width whose MACs are nearest."""
    wanted = cost(config).macs

    def of(width: int) -> Subject:
        def make() -> nn.Module:
            from diffusers import UNet2DModel

            network = UNet2DModel(
                sample_size=config.size,
                in_channels=config.in_channels,
                out_channels=config.out_channels,
                block_out_channels=(width, 2 * width, 4 * width),
                down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=32,
                num_class_embeds=config.num_classes + 1 if config.num_classes else None,
            )
            return Foreign(cast(nn.Module, network), config)

        return Subject(f"diffusers UNet2DModel, width {width}", config, make, _as_is)

    first = of(64).flops(1, config.size, training=False) / 2
    return of(max(32, 32 * round(2 * (wanted / first) ** 0.5)))  # FLOPs grow with the square of the width


VOCABULARY = 8256


class Tokens(nn.Module):
    """UVit2DModel, which predicts masked tokens of a codebook given a text, timed in a denoiser's place.

    The first channel of each pixel becomes the token, the logits are the output, the time takes the place of the image
    size and the class that of a text of one word: the cost is the same, the output is meaningless.
    """

    def __init__(self, network: nn.Module, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.word = nn.Embedding(config.num_classes + 1, width)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], t [B], y [B] -> [B, out_channels, H, W]."""
        tokens = ((x[:, 0].clamp(-1, 1) + 1) / 2 * (VOCABULARY - 1)).long()
        word = self.word(t.new_full(t.shape, self.config.num_classes, dtype=torch.long) if y is None else y)
        return self.network(tokens, word[:, None], word, t[:, None])


def _uvit(config: ModelConfig) -> Subject:
    """In aMUSEd's proportions for 512 pixels: convolutions of 3/4 the width around layers at half the resolution."""
    wanted = cost(config).macs

    def of(layers: int, width: int) -> Subject:
        def make() -> nn.Module:
            from diffusers import UVit2DModel

            network = UVit2DModel(
                hidden_size=width,
                cond_embed_dim=width * 3 // 4,
                micro_cond_embed_dim=256,
                encoder_hidden_size=width * 3 // 4,
                vocab_size=VOCABULARY,
                codebook_size=config.out_channels,
                in_channels=width * 3 // 4,
                block_out_channels=width * 3 // 4,
                block_num_heads=width // 64,
                downsample=True,
                upsample=True,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
                intermediate_size=width * 11 // 4,
                sample_size=config.size[0],
            )
            return Tokens(cast(nn.Module, network), config, width * 3 // 4)

        return Subject(f"diffusers UVit2DModel, {layers} layers of {width}", config, make, _as_is)

    for width in range(128, 1088, 64):
        one, two = (of(layers, width).flops(1, config.size, training=False) / 2 for layers in (1, 2))
        layers = max(1, round((wanted - one) / (two - one)) + 1)
        if layers / width <= 22 / 1024:  # aMUSEd's
            break
    return of(layers, width)


def _as_is(model: nn.Module) -> nn.Module:
    return model


MAKERS: Mapping[str, Callable[[ModelConfig], Subject]] = {
    "DiTTransformer2DModel": _dit,
    "UNet2DModel": _unet,
    "UVit2DModel": _uvit,
}
"""Class -> a network of that class with about the MACs of a config."""
