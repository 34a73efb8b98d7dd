"""Key names of the DiMSUM release."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from udit.models.dimsum.config import DiMSUMConfig
from udit.models.fixed import Fixed, Keys, Row, Unused, both
from udit.nn.wavelet import haar

BANDS = ("ll", "lh", "hl", "hh")


def key_map(config: DiMSUMConfig) -> Keys:
    """{published key: (our key or filter, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def haar_filters() -> Tensor:
    """[4, 1, 2, 2]: the release's convolution kernels, one a band; what ``haar`` makes of each single pixel."""
    pixels = torch.eye(4).view(4, 2, 2, 1)
    return haar(pixels).view(4, 4).T.reshape(4, 1, 2, 2).contiguous()


def _rows(config: DiMSUMConfig) -> Iterator[Row]:
    (rows, columns), d, patch = config.grid, config.width, config.patch
    hidden, classes = round(config.ffn.ratio * d), config.num_classes
    yield "pos_embed", "positions", (1, rows * columns, d)
    yield from both("x_embedder.proj", "embed", (d, config.input_channels, patch, patch))
    yield from both("t_embedder.mlp.0", "conditioner.time.0", (d, 256))
    yield from both("t_embedder.mlp.2", "conditioner.time.2", (d, d))
    if classes:
        yield "y_embedder.embedding_table.weight", "conditioner.label.weight", (classes + config.null_class, d)
    for i in range(config.depth):
        block = f"blocks.{i}"
        yield f"{block}.norm.weight", f"{block}.norm1.weight", (d,)
        yield from _mixer(config, f"{block}.spatial_mamba.mixer", f"{block}.spatial.mixer")
        yield from both(
            f"{block}.spatial_mamba.adaLN_modulation.1", f"{block}.spatial.modulation", (3 * config.half, d)
        )
        yield from _mixer(config, f"{block}.freq_mamba.mixer", f"{block}.frequency.mixer")
        for band, name in enumerate(BANDS):
            kernel = Fixed(lambda band=band: haar_filters()[band], parameter=False)  # type: ignore[misc]
            yield f"{block}.freq_mamba.dwt.w_{name}", kernel, (1, 1, 2, 2)
        yield f"{block}.freq_mamba.idwt.filters", Fixed(haar_filters, parameter=False), (4, 1, 2, 2)
        yield from both(f"{block}.freq_mamba.adaLN_modulation.1", f"{block}.frequency.modulation", (3 * config.half, d))
        yield from both(f"{block}.proj.qkv1", f"{block}.fuse.qkv1", (3 * config.half, config.half))
        yield from both(f"{block}.proj.qkv2", f"{block}.fuse.qkv2", (3 * config.half, config.half))
        yield from both(f"{block}.proj.proj", f"{block}.fuse.out", (d, d))
        yield f"{block}.norm_2.weight", f"{block}.norm2.weight", (d,)
        yield from both(f"{block}.adaLN_modulation.1", f"{block}.modulation", (3 * d, d))
        yield from both(f"{block}.mlp.w12", f"{block}.ffn.expand", (2 * hidden, d))
        yield from both(f"{block}.mlp.w3", f"{block}.ffn.contract", (d, hidden))
    yield from both("attn_block.attn.qkv", "attention.attention.qkv", (3 * d, d))
    yield from both("attn_block.attn.proj", "attention.attention.out", (d, d))
    yield from both("attn_block.mlp.w12", "attention.ffn.expand", (2 * hidden, d))
    yield from both("attn_block.mlp.w3", "attention.ffn.contract", (d, hidden))
    yield from both("attn_block.adaLN_modulation.1", "attention.modulation", (6 * d, d))
    yield from both("final_layer.linear", "out", (patch**2 * config.out_channels, d))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * d, d))


def _mixer(config: DiMSUMConfig, key: str, name: str) -> Iterator[Row]:
    inner, states, rank = 2 * config.half, config.states, config.step_rank
    yield f"{key}.A_log", f"{name}.log_rate", (inner, states)
    yield f"{key}.D", f"{name}.direct", (inner,)
    yield f"{key}.in_proj.weight", f"{name}.expand.weight", (2 * inner, config.half)
    yield from both(f"{key}.conv1d", f"{name}.conv", (inner, 1, config.kernel))
    yield f"{key}.x_proj.weight", f"{name}.select.weight", (rank + 2 * states, inner)
    yield from both(f"{key}.dt_proj", f"{name}.step", (inner, rank))
    for part, shape in (("weight", (inner, config.width)), ("bias", (inner,))):
        yield f"{key}.cond_proj.{part}", Unused(f"{name}.unused.{part}"), shape
    yield f"{key}.out_proj.weight", f"{name}.contract.weight", (config.half, inner)
