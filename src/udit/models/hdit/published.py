"""Key names of k-diffusion's hourglass transformer (image_transformer_v2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from udit.models.fixed import Fixed, Keys, Row
from udit.models.hdit.config import HDiTConfig, HourglassLevel
from udit.nn.axial import axial_frequencies


def key_map(config: HDiTConfig) -> Keys:
    """{published key: (our key or fixed table, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: HDiTConfig) -> Iterator[Row]:
    *outer, middle = config.stages
    cond, widths, hidden = config.mapping.width, [stage.width for stage in config.stages], config.mapping.hidden
    area = config.patch**2
    yield "patch_in.proj.weight", "patch_in.proj.weight", (widths[0], config.input_channels * area)
    yield "time_emb.weight", "conditioner.time_features.weight", (cond // 2, 1)
    yield "time_in_proj.weight", "conditioner.time.weight", (cond, cond)
    yield "aug_emb.weight", "conditioner.augmentation_features.weight", (cond // 2, 9)
    yield "aug_in_proj.weight", "conditioner.augmentation.weight", (cond, cond)
    if config.num_classes:
        yield "class_emb.weight", "conditioner.label.weight", (config.num_classes + 1, cond)
    if config.vector_cond:
        yield "mapping_cond_in_proj.weight", "conditioner.vector.weight", (cond, config.vector_cond)
    yield "mapping.in_norm.scale", "conditioner.norm_in.weight", (cond,)
    for i in range(config.mapping.depth):
        theirs, ours = f"mapping.blocks.{i}", f"conditioner.blocks.{i}"
        yield f"{theirs}.norm.scale", f"{ours}.norm.weight", (cond,)
        yield f"{theirs}.up_proj.weight", f"{ours}.ffn.expand.weight", (2 * hidden, cond)
        yield f"{theirs}.down_proj.weight", f"{ours}.ffn.contract.weight", (cond, hidden)
    yield "mapping.out_norm.scale", "conditioner.norm_out.weight", (cond,)
    for side, name in (("down_levels", "encoder"), ("up_levels", "decoder")):
        for level, stage in enumerate(outer):
            yield from _stage(stage, f"{side}.{level}", f"{name}.{level}", cond)
    yield from _stage(middle, "mid_level", "middle", cond)
    pairs = list(enumerate(pairwise(widths)))
    for level, (fine, coarse) in pairs:
        yield f"merges.{level}.proj.weight", f"merge.{level}.proj.weight", (coarse, 4 * fine)
    for level, (fine, coarse) in pairs:
        yield f"splits.{level}.fac", f"join.{level}.weight", (1,)
        yield f"splits.{level}.proj.weight", f"join.{level}.split.proj.weight", (4 * fine, coarse)
    yield "out_norm.scale", "norm_out.weight", (widths[0],)
    yield "patch_out.proj.weight", "patch_out.proj.weight", (config.out_channels * area, widths[0])


def _stage(stage: HourglassLevel, key: str, name: str, cond: int) -> Iterator[Row]:
    width, heads, channels = stage.width, stage.heads, stage.head_channels
    frequencies = Fixed(partial(axial_frequencies, heads, channels), parameter=False)
    for i in range(stage.depth):
        theirs, ours = f"{key}.{i}", f"{name}.blocks.{i}"
        yield f"{theirs}.self_attn.scale", f"{ours}.attention.scale", (heads,)
        yield f"{theirs}.self_attn.norm.linear.weight", f"{ours}.attention_scale.weight", (width, cond)
        yield f"{theirs}.self_attn.qkv_proj.weight", f"{ours}.attention.qkv.weight", (3 * width, width)
        yield f"{theirs}.self_attn.pos_emb.freqs", frequencies, (heads, channels // 8)
        yield f"{theirs}.self_attn.out_proj.weight", f"{ours}.attention.out.weight", (width, width)
        yield f"{theirs}.ff.norm.linear.weight", f"{ours}.ffn_scale.weight", (width, cond)
        yield f"{theirs}.ff.up_proj.weight", f"{ours}.ffn.expand.weight", (2 * stage.hidden, width)
        yield f"{theirs}.ff.down_proj.weight", f"{ours}.ffn.contract.weight", (width, stage.hidden)
