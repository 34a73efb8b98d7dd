"""Key names of the FiT and FiTv2 releases."""

from __future__ import annotations

from collections.abc import Iterator

from udit.models.fit.config import FiTConfig
from udit.models.fixed import Keys, Row, both


def key_map(config: FiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: FiTConfig) -> Iterator[Row]:
    d, area, rank, hidden = config.width, config.patch**2, config.rank, config.ffn.channels(config.width)
    yield from both("x_embedder.proj", "embed", (d, config.input_channels * area))
    yield from both("t_embedder.mlp.0", "conditioner.time.0", (d, 256))
    yield from both("t_embedder.mlp.2", "conditioner.time.2", (d, d))
    if config.num_classes:
        yield "y_embedder.embedding_table.weight", "conditioner.label.weight", (config.num_classes + 1, d)
    if rank:
        yield from both("global_adaLN_modulation.1", "shared_modulation", (6 * d, d))
    for i in range(config.depth):
        block = f"blocks.{i}"
        yield from both(f"{block}.attn.qkv", f"{block}.attention.qkv", (3 * d, d))
        yield from both(f"{block}.attn.proj", f"{block}.attention.out", (d, d))
        yield from both(f"{block}.mlp.fc1_g", f"{block}.ffn.gate", (hidden, d))
        yield from both(f"{block}.mlp.fc1_x", f"{block}.ffn.expand", (hidden, d))
        yield from both(f"{block}.mlp.fc2", f"{block}.ffn.contract", (d, hidden))
        if rank:
            yield from both(f"{block}.adaLN_modulation.1", f"{block}.reduce", (rank, d))
            yield from both(f"{block}.adaLN_modulation.2", f"{block}.modulation", (6 * d, rank))
        else:
            yield from both(f"{block}.adaLN_modulation.1", f"{block}.modulation", (6 * d, d))
    yield from both("final_layer.linear", "out", (area * config.out_channels, d))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * d, d))
