"""Key names of the U-ViT release."""

from __future__ import annotations

from collections.abc import Iterator

from udit.models.fixed import Keys, Row, both
from udit.models.uvit.config import UViTConfig


def key_map(config: UViTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: UViTConfig) -> Iterator[Row]:
    d, patch, (rows, columns), half = config.width, config.patch, config.grid, config.depth // 2
    yield "pos_embed", "positions", (1, config.extras + rows * columns, d)
    yield from both("patch_embed.proj", "embed", (d, config.input_channels, patch, patch))
    if config.num_classes:
        yield "label_emb.weight", "conditioner.label.weight", (config.num_classes + config.null_class, d)
    if config.context:
        yield from both("context_embed", "conditioner.context", (d, config.context.width))
    for i in range(config.depth + 1):
        key = f"in_blocks.{i}" if i < half else "mid_block" if i == half else f"out_blocks.{i - half - 1}"
        yield from _block(config, key, f"blocks.{i}")
        if i > half:
            yield from both(f"{key}.skip_linear", f"joins.{i - half - 1}", (d, 2 * d))
    yield from both("norm", "norm", (d,))
    yield from both("decoder_pred", "out", (patch**2 * config.out_channels, d))
    if config.final_conv:
        yield from both("final_layer", "final", (config.out_channels, config.out_channels, 3, 3))


def _block(config: UViTConfig, key: str, name: str) -> Iterator[Row]:
    d, hidden = config.width, round(config.ffn.ratio * config.width)
    yield from both(f"{key}.norm1", f"{name}.norm1", (d,))
    yield f"{key}.attn.qkv.weight", f"{name}.attention.qkv.weight", (3 * d, d)
    yield from both(f"{key}.attn.proj", f"{name}.attention.out", (d, d))
    yield from both(f"{key}.norm2", f"{name}.norm2", (d,))
    yield from both(f"{key}.mlp.fc1", f"{name}.ffn.expand", (hidden, d))
    yield from both(f"{key}.mlp.fc2", f"{name}.ffn.contract", (d, hidden))
