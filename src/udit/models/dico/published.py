"""Key names of the DiCo release."""

from __future__ import annotations

from collections.abc import Iterator

from udit.errors import UserError
from udit.models.dico.config import DiCoConfig
from udit.models.fixed import Keys, Row, both


def key_map(config: DiCoConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    if config.ffn.gelu != "exact":
        raise UserError("the release has the exact GELU only; this DiCo, with ffn.gelu tanh, is an ablation of ours")
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: DiCoConfig) -> Iterator[Row]:
    widths, depths, c, top, levels = config.widths, config.depths, config.width, config.top, config.levels
    yield from both("x_embedder.proj", "stem", (c, config.input_channels, 3, 3))
    yield from _time(0, c)
    if config.num_classes:
        for i, w in enumerate(widths):
            name = f"conditioners.{i}.label.weight"
            yield f"y_embedder.embedding_table_{i}.weight", name, (config.num_classes + 1, w)
    for i, w in enumerate(widths[1:], start=1):
        yield from _time(i, w)
    for i, w in enumerate(widths):
        stage = f"encoder_level_{i + 1}" if i < levels - 1 else "latent"
        yield from _stage(config, stage, f"encoder.{i}", w, depths[i])
        if i < levels - 1:
            yield f"down{i + 1}_{i + 2}.body.0.weight", f"merge.{i}.conv.weight", (w // 2, w, 3, 3)
    for i in reversed(range(levels - 1)):
        w, own = widths[i], widths[i] if i else top
        yield f"up{i + 2}_{i + 1}.body.0.weight", f"split.{i}.conv.weight", (4 * w, 2 * w, 3, 3)
        yield from both(f"reduce_chan_level{i + 1}", f"reduce.{i}", (own, 2 * w, 1, 1))
        yield from _stage(config, f"decoder_level_{i + 1}", f"decoder.{i}", own, depths[-1 - i])
    yield from both("final_layer.out_proj", "out", (config.out_channels, top, 3, 3))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * top, top))


def _time(level: int, width: int) -> Iterator[Row]:
    for layer, inner in ((0, 256), (2, width)):
        yield from both(f"t_embedder_{level + 1}.mlp.{layer}", f"conditioners.{level}.time.{layer}", (width, inner))


def _stage(config: DiCoConfig, key: str, name: str, width: int, depth: int) -> Iterator[Row]:
    hidden = round(config.ffn.ratio * width)
    for i in range(depth):
        theirs, ours = f"{key}.{i}", f"{name}.blocks.{i}"
        yield from both(f"{theirs}.conv1", f"{ours}.attention.expand", (width, width, 1, 1))
        yield from both(f"{theirs}.conv2", f"{ours}.attention.depthwise", (width, 1, 3, 3))
        yield from both(f"{theirs}.conv3", f"{ours}.attention.contract", (width, width, 1, 1))
        yield from both(f"{theirs}.ca.1", f"{ours}.attention.channels", (width, width, 1, 1))
        yield from both(f"{theirs}.conv4", f"{ours}.ffn.expand", (hidden, width, 1, 1))
        yield from both(f"{theirs}.conv5", f"{ours}.ffn.contract", (width, hidden, 1, 1))
        yield from both(f"{theirs}.adaLN_modulation.1", f"{ours}.modulation", (6 * width, width))
