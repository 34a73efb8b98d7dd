"""Key names of Wan 2.1 in diffusers' ``WanTransformer3DModel``."""

from __future__ import annotations

from collections.abc import Iterator

from udit.errors import UserError
from udit.models.fixed import Keys, Row, both
from udit.models.wan.config import WanConfig
from udit.models.wan.network import FEATURES


def key_map(config: WanConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    if not config.context:
        raise UserError("the model takes labels and Wan's release takes texts; this one is ours")
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: WanConfig) -> Iterator[Row]:
    d, p, q = config.width, config.patch, config.patch_frames
    yield "scale_shift_table", "out_table", (1, 2, d)
    yield from both("patch_embedding", "embed", (d, config.input_channels, q, p, p))
    embedder = "condition_embedder"
    yield from both(f"{embedder}.time_embedder.linear_1", "time.0", (d, FEATURES))
    yield from both(f"{embedder}.time_embedder.linear_2", "time.2", (d, d))
    yield from both(f"{embedder}.time_proj", "modulation", (6 * d, d))
    yield from both(f"{embedder}.text_embedder.linear_1", "context.0", (d, config.texts[1]))
    yield from both(f"{embedder}.text_embedder.linear_2", "context.2", (d, d))
    for i in range(config.depth):
        yield from _block(config, f"blocks.{i}")
    yield from both("proj_out", "out", (q * p * p * config.out_channels, d))


def _block(config: WanConfig, block: str) -> Iterator[Row]:
    d, hidden = config.width, round(config.ffn.ratio * config.width)
    yield f"{block}.scale_shift_table", f"{block}.table", (1, 6, d)
    for key, name in (("attn1", "attention"), ("attn2", "cross")):
        for part in "qkv":
            yield from both(f"{block}.{key}.to_{part}", f"{block}.{name}.{part}", (d, d))
        yield from both(f"{block}.{key}.to_out.0", f"{block}.{name}.out", (d, d))
        for part in "qk":
            yield f"{block}.{key}.norm_{part}.weight", f"{block}.{name}.{part}_norm.weight", (d,)
    yield from both(f"{block}.norm2", f"{block}.norm", (d,))
    yield from both(f"{block}.ffn.net.0.proj", f"{block}.ffn.expand", (hidden, d))
    yield from both(f"{block}.ffn.net.2", f"{block}.ffn.contract", (d, hidden))
