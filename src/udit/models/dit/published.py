"""Key names of the DiT release, which SiT and Skip-DiT keep."""

from __future__ import annotations

from collections.abc import Iterator

from udit.errors import UserError
from udit.models.dit.config import DiTConfig
from udit.models.fixed import Fixed, Keys, Row, both
from udit.models.isotropic import IsotropicConfig
from udit.nn.specs import Full
from udit.nn.tokens import sincos_table


def key_map(config: DiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    if config.attention != Full(cosine=False, rope=False):
        raise UserError(
            "the release has full attention by the scaled dot product only; this DiT is an ablation of ours"
        )
    return {key: (name, shape) for key, name, shape in transformer_rows(config, config.head_channels)}


def transformer_rows(config: IsotropicConfig, head_channels: int) -> Iterator[Row]:
    """Rows of the transformer, from the position table to the head."""
    grid, d, patch = config.grid, config.width, config.patch
    hidden = round(config.ffn.ratio * d)
    yield "pos_embed", Fixed(lambda: sincos_table(*grid, d), parameter=True), (1, grid[0] * grid[1], d)
    yield from both("x_embedder.proj", "embed", (d, config.in_channels, patch, patch))
    yield from both("t_embedder.mlp.0", "conditioner.time.0", (d, 256))
    yield from both("t_embedder.mlp.2", "conditioner.time.2", (d, d))
    if config.num_classes:
        yield "y_embedder.embedding_table.weight", "conditioner.label.weight", (config.num_classes + 1, d)
    for i in range(config.depth):
        block = f"blocks.{i}"
        yield from both(f"{block}.attn.qkv", f"{block}.attention.qkv", (3 * d, d))
        yield from both(f"{block}.attn.proj", f"{block}.attention.out", (d, d))
        yield from both(f"{block}.mlp.fc1", f"{block}.ffn.expand", (hidden, d))
        yield from both(f"{block}.mlp.fc2", f"{block}.ffn.contract", (d, hidden))
        yield from both(f"{block}.adaLN_modulation.1", f"{block}.modulation", (6 * d, d))
    yield from both("final_layer.linear", "out", (patch**2 * head_channels, d))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * d, d))
