"""Key names of the LightningDiT release."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from udit.models.fixed import Fixed, Keys, Row, both
from udit.models.lightningdit.config import LightningDiTConfig
from udit.nn.rotary import split_rotary_grid
from udit.nn.tokens import sincos_table


def key_map(config: LightningDiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: LightningDiTConfig) -> Iterator[Row]:
    grid, d, patch = config.grid, config.width, config.patch
    tokens, channels, hidden = grid[0] * grid[1], d // config.heads, config.ffn.channels(d)
    yield "pos_embed", Fixed(lambda: sincos_table(*grid, d), parameter=True), (1, tokens, d)
    yield from both("x_embedder.proj", "embed", (d, config.input_channels, patch, patch))
    yield from both("t_embedder.mlp.0", "conditioner.time.0", (d, 256))
    yield from both("t_embedder.mlp.2", "conditioner.time.2", (d, d))
    if config.num_classes:
        yield "y_embedder.embedding_table.weight", "conditioner.label.weight", (config.num_classes + 1, d)
    if config.rope:
        yield "feat_rope.freqs_cos", Fixed(lambda: _table(config)[0], parameter=False), (tokens, channels)
        yield "feat_rope.freqs_sin", Fixed(lambda: _table(config)[1], parameter=False), (tokens, channels)
    for i in range(config.depth):
        block = f"blocks.{i}"
        yield f"{block}.norm1.weight", f"{block}.norm1.weight", (d,)
        yield f"{block}.norm2.weight", f"{block}.norm2.weight", (d,)
        yield from both(f"{block}.attn.qkv", f"{block}.attention.qkv", (3 * d, d))
        if config.qk_norm:
            yield f"{block}.attn.q_norm.weight", f"{block}.attention.q_norm.weight", (channels,)
            yield f"{block}.attn.k_norm.weight", f"{block}.attention.k_norm.weight", (channels,)
        yield from both(f"{block}.attn.proj", f"{block}.attention.out", (d, d))
        yield from both(f"{block}.mlp.w12", f"{block}.ffn.expand", (2 * hidden, d))
        yield from both(f"{block}.mlp.w3", f"{block}.ffn.contract", (d, hidden))
        yield from both(f"{block}.adaLN_modulation.1", f"{block}.modulation", ((6 if config.shift else 4) * d, d))
    yield "final_layer.norm_final.weight", "out_norm.weight", (d,)
    yield from both("final_layer.linear", "out", (patch**2 * config.out_channels, d))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * d, d))


def _table(config: LightningDiTConfig) -> Tensor:
    """Cosines and sines as the release stores them, without the signs of the rotation."""
    table = split_rotary_grid(*config.grid, config.width // config.heads)
    table[1, :, ::2] *= -1
    return table
