"""Key names of the guided-diffusion release (ADM)."""

from __future__ import annotations

from collections.abc import Iterator

from udit.models.adm.config import ADMConfig
from udit.models.fixed import Keys, Row, both


def key_map(config: ADMConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: ADMConfig) -> Iterator[Row]:
    widths, cond, levels = config.widths, 4 * config.width, len(config.widths)
    yield from both("time_embed.0", "conditioner.time.0", (cond, config.width))
    yield from both("time_embed.2", "conditioner.time.2", (cond, cond))
    if config.num_classes:
        yield "label_emb.weight", "conditioner.label.weight", (config.num_classes + config.null_class, cond)
    yield from both("input_blocks.0.0", "stem", (widths[0], config.input_channels, 3, 3))
    index, inner = 0, widths[0]
    for level, width in enumerate(widths):
        for i in range(config.res_blocks):
            index += 1
            yield from _block(config, f"input_blocks.{index}", f"encoder.{level}", i, inner, width)
            inner = width
        if level < levels - 1:
            index += 1
            yield from _resample(config, f"input_blocks.{index}.0", "op", f"down.{level}", width)
    yield from _res(config, "middle_block.0", "middle.0", inner, inner)
    yield from _attention("middle_block.1", "middle_attention", inner)
    yield from _res(config, "middle_block.2", "middle.1", inner, inner)
    index = -1
    for level in reversed(range(levels)):
        for i, inner in enumerate(config.decoder_inputs(level)):
            index += 1
            yield from _block(config, f"output_blocks.{index}", f"decoder.{level}", i, inner, widths[level])
        if level:
            place = 1 + config.attends(level)  # behind the last block and its attention
            yield from _resample(config, f"output_blocks.{index}.{place}", "conv", f"up.{level - 1}", widths[level])
    yield from both("out.0", "norm", (widths[0],))
    yield from both("out.2", "out", (config.out_channels, widths[0], 3, 3))


def _block(config: ADMConfig, key: str, stage: str, i: int, inner: int, width: int) -> Iterator[Row]:
    yield from _res(config, f"{key}.0", f"{stage}.blocks.{i}", inner, width)
    if config.attends(int(stage.split(".")[1])):
        yield from _attention(f"{key}.1", f"{stage}.attentions.{i}", width)


def _res(config: ADMConfig, key: str, name: str, inner: int, width: int) -> Iterator[Row]:
    yield from both(f"{key}.in_layers.0", f"{name}.norm_in", (inner,))
    yield from both(f"{key}.in_layers.2", f"{name}.conv_in", (width, inner, 3, 3))
    yield from both(
        f"{key}.emb_layers.1", f"{name}.modulation", (width * (1 + config.scale_shift_norm), 4 * config.width)
    )
    yield from both(f"{key}.out_layers.0", f"{name}.norm_out", (width,))
    yield from both(f"{key}.out_layers.3", f"{name}.conv_out", (width, width, 3, 3))
    if inner != width:
        yield from both(f"{key}.skip_connection", f"{name}.shortcut", (width, inner, 1, 1))


def _resample(config: ADMConfig, key: str, layer: str, name: str, width: int) -> Iterator[Row]:
    if config.resblock_updown:
        yield from _res(config, key, name, width, width)
    else:
        yield from both(f"{key}.{layer}", f"{name}.conv", (width, width, 3, 3))


def _attention(key: str, name: str, width: int) -> Iterator[Row]:
    yield from both(f"{key}.norm", f"{name}.norm", (width,))
    yield from both(f"{key}.qkv", f"{name}.qkv", (3 * width, width, 1))
    yield from both(f"{key}.proj_out", f"{name}.out", (width, width, 1))
