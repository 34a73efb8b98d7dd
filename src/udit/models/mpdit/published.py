"""Key names of the MPDiT release: of two levels (MPDiT) and of three (MPDiTv2)."""

from __future__ import annotations

from collections.abc import Iterator

from udit.errors import UserError
from udit.models.fixed import Fixed, Keys, Row, both
from udit.models.mpdit.config import MPDiTConfig
from udit.models.mpdit.network import CHANNELS, FREQUENCIES, LAYERS
from udit.nn.tokens import sincos_table


def key_map(config: MPDiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    levels = len(config.depths)
    if levels not in (2, 3):
        raise UserError(f"depths has {levels} levels; MPDiT's release has two and MPDiTv2's three, this one is ours")
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: MPDiTConfig) -> Iterator[Row]:
    d, channels, patches, hidden = (
        config.width,
        config.input_channels,
        config.patches,
        round(config.ffn.ratio * config.width),
    )
    finer = range(len(patches) - 1)
    three = len(patches) == 3
    ends = ["_lvl1", "_lvl2"] if three else [""]
    tables = ["pos_embed", "pos_embed_lvl1", "pos_embed_lvl2"] if three else ["pos_embed_downsampled", "pos_embed"]
    positions = [_positions(config, key, patch) for key, patch in zip(tables, patches, strict=True)]
    yield from positions if three else reversed(positions)
    yield from both("x_embedder.proj", "embed", (d, channels, patches[0], patches[0]))
    for i in finer:
        key = f"x_embedder{ends[i] if three else '_skip'}.proj"
        yield from both(key, f"finer.{i}.embed", (d, channels, patches[i + 1], patches[i + 1]))
    for i in finer:
        yield from both(f"linear_skip{ends[i]}", f"finer.{i}.skip", (d, d))
    yield from _time(config)
    if config.num_classes:
        shape = config.num_classes + 1, config.label_tokens * d
        yield "y_embedder.embedding_table.weight", "label.weight", shape
    yield from both("time_modulation.1", "modulation", (6 * d, d))
    for i in range(config.depths[0]):
        yield from _block(f"downsample_blocks.{i}", f"blocks.{i}", d, hidden)
    for i in finer:
        yield from both(f"upsampler{ends[i]}.proj", f"finer.{i}.expand", (4 * d, d))
        yield from both(f"upsampler{ends[i]}.refine", f"finer.{i}.refine", (d, d))
        for j in range(config.depths[i + 1]):
            yield from _block(f"upsample_blocks{ends[i]}.{j}", f"finer.{i}.blocks.{j}", d, hidden)
    yield from both("final_layer.linear", "out", (config.patch**2 * config.out_channels, d))


def _positions(config: MPDiTConfig, key: str, patch: int) -> Row:
    height, width = (side // patch for side in config.size)
    table = Fixed(lambda: sincos_table(height, width, config.width), parameter=True)
    return key, table, (1, height * width, config.width)


def _time(config: MPDiTConfig) -> Iterator[Row]:
    d = config.width
    if config.time_embedding == "mlp":
        yield from both("t_embedder.mlp.0", "time.time.0", (d, 256))
        yield from both("t_embedder.mlp.2", "time.time.2", (d, d))
        return
    yield from both("t_embedder.fc0", "time.lift", (CHANNELS, 1))
    for i in range(LAYERS):
        for part in ("real", "imag"):
            shape = CHANNELS, CHANNELS, FREQUENCIES
            yield f"t_embedder.conv{i}.weights_{part}", f"time.layers.{i}.{part}", shape
    for i in range(LAYERS):
        yield from both(f"t_embedder.w{i}", f"time.layers.{i}.mix", (CHANNELS, CHANNELS, 1))
    yield from both("t_embedder.fc1", "time.project", (d, CHANNELS))


def _block(key: str, name: str, d: int, hidden: int) -> Iterator[Row]:
    yield from both(f"{key}.attn.qkv", f"{name}.attention.qkv", (3 * d, d))
    yield from both(f"{key}.attn.proj", f"{name}.attention.out", (d, d))
    yield from both(f"{key}.mlp.fc1", f"{name}.ffn.expand", (hidden, d))
    yield from both(f"{key}.mlp.fc2", f"{name}.ffn.contract", (d, hidden))
