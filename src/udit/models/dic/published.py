"""Key names of the DiC release."""

from __future__ import annotations

from collections.abc import Iterator

from udit.models.dic.config import DiCConfig
from udit.models.fixed import Keys, Row, both


def key_map(config: DiCConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: DiCConfig) -> Iterator[Row]:
    widths, depths, c = config.widths, config.depths, config.width
    yield from both("x_embedder.proj", "stem", (c, config.input_channels, 3, 3))
    for i, w in enumerate(widths):
        for layer, inner in ((0, 256), (2, w)):
            yield from both(f"t_embedder_ls.{i}.mlp.{layer}", f"conditioners.{i}.time.{layer}", (w, inner))
    if config.num_classes:
        for i, w in enumerate(widths):
            name = f"conditioners.{i}.label.weight"
            yield f"y_embedder_ls.{i}.embedding_table.weight", name, (config.num_classes + 1, w)
    last = len(widths) - 1
    for i, w in enumerate(widths):
        for j in range(depths[i]):
            stage = f"enc_blocks.{i}" if i < last else "lat_blocks.0"
            yield from _block(f"{stage}.{j}", f"encoder.{i}.blocks.{j}", w, w)
    for i in reversed(range(last)):  # the release counts decoder stages and upsamplings from the bottleneck up
        for j in range(depths[-1 - i]):
            inner = widths[i] if j % config.skip_stride else 2 * widths[i]
            yield from _block(f"dec_blocks.{last - 1 - i}.{j}", f"decoder.{i}.blocks.{j}", inner, widths[i])
    for i in range(last):
        yield f"downs.{i}.body.0.weight", f"merge.{i}.conv.weight", (widths[i] // 2, widths[i], 3, 3)
    for i in reversed(range(last)):
        yield f"ups.{last - 1 - i}.body.0.weight", f"split.{i}.conv.weight", (4 * widths[i], 2 * widths[i], 3, 3)
    yield from both("output", "mix", (c, c, 3, 3))
    yield from both("final_layer.out_proj", "out", (config.out_channels, c, 3, 3))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * c, c))


def _block(key: str, name: str, inner: int, width: int) -> Iterator[Row]:
    yield from both(f"{key}.conv.norm0", f"{name}.norm_in", (inner,))
    yield from both(f"{key}.conv.conv0", f"{name}.conv_in", (width, inner, 3, 3))
    yield from both(f"{key}.conv.affine.1", f"{name}.modulation", (3 * width, width))
    yield from both(f"{key}.conv.norm1", f"{name}.norm_out", (width,))
    yield from both(f"{key}.conv.conv1", f"{name}.conv_out", (width, width, 3, 3))
    if inner != width:
        yield from both(f"{key}.conv.skip", f"{name}.shortcut", (width, inner, 1, 1))
