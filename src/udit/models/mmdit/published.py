"""Key names of MMDiT in diffusers' ``SD3Transformer2DModel``, the open program of Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Iterator

from udit.errors import UserError
from udit.models.fixed import Fixed, Keys, Row, both
from udit.models.mmdit.config import MMDiTConfig
from udit.models.mmdit.network import FEATURES, centred
from udit.nn.tokens import sincos_positions


def key_map(config: MMDiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    if not config.context:
        raise UserError("the model takes labels and MMDiT's release takes texts; this one is ours")
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: MMDiTConfig) -> Iterator[Row]:
    d, patch, side = config.width, config.patch, config.table_side
    _, text_width, pooled = config.texts
    positions = centred(side, side, config.base_side)
    table = Fixed(lambda: sincos_positions(positions, positions, d), parameter=False)
    yield "pos_embed.pos_embed", table, (1, side**2, d)
    yield from both("pos_embed.proj", "embed", (d, config.input_channels, patch, patch))
    for key, name, inputs in (("timestep", "time", FEATURES), ("text", "pooled", pooled)):
        yield from both(f"time_text_embed.{key}_embedder.linear_1", f"{name}.0", (d, inputs))
        yield from both(f"time_text_embed.{key}_embedder.linear_2", f"{name}.2", (d, d))
    yield from both("context_embedder", "context", (d, text_width))
    for i in range(config.depth):
        yield from _block(config, f"transformer_blocks.{i}", f"blocks.{i}", i)
    yield from both("norm_out.linear", "out_modulation", (2 * d, d))
    yield from both("proj_out", "out", (patch**2 * config.out_channels, d))


def _block(config: MMDiTConfig, key: str, name: str, index: int) -> Iterator[Row]:
    d, last, second = config.width, index == config.depth - 1, index in config.second_attention
    yield from both(f"{key}.norm1.linear", f"{name}.image.modulation", ((9 if second else 6) * d, d))
    yield from both(f"{key}.norm1_context.linear", f"{name}.text.modulation", ((2 if last else 6) * d, d))
    image, text = f"{name}.image.heads", f"{name}.text.heads"
    if config.qk_norm:
        yield from _norms(config, f"{key}.attn.norm_", image)
    for part in "qkv":
        yield from both(f"{key}.attn.to_{part}", f"{image}.{part}", (d, d))
    for part in "kvq":
        yield from both(f"{key}.attn.add_{part}_proj", f"{text}.{part}", (d, d))
    yield from both(f"{key}.attn.to_out.0", f"{name}.image.out", (d, d))
    if not last:
        yield from both(f"{key}.attn.to_add_out", f"{name}.text.out", (d, d))
    if config.qk_norm:
        yield from _norms(config, f"{key}.attn.norm_added_", text)
    if second:
        if config.qk_norm:
            yield from _norms(config, f"{key}.attn2.norm_", f"{name}.second.heads")
        for part in "qkv":
            yield from both(f"{key}.attn2.to_{part}", f"{name}.second.heads.{part}", (d, d))
        yield from both(f"{key}.attn2.to_out.0", f"{name}.second.out", (d, d))
    yield from _ffn(config, f"{key}.ff", f"{name}.image.ffn")
    if not last:
        yield from _ffn(config, f"{key}.ff_context", f"{name}.text.ffn")


def _norms(config: MMDiTConfig, key: str, name: str) -> Iterator[Row]:
    for part in "qk":
        yield f"{key}{part}.weight", f"{name}.{part}_norm.weight", (config.width // config.heads,)


def _ffn(config: MMDiTConfig, key: str, name: str) -> Iterator[Row]:
    d, hidden = config.width, round(config.ffn.ratio * config.width)
    yield from both(f"{key}.net.0.proj", f"{name}.expand", (hidden, d))
    yield from both(f"{key}.net.2", f"{name}.contract", (d, hidden))
