"""Key names of the PDE-Transformer release (its network's own; the checkpoints put ``model.`` before them)."""

from __future__ import annotations

from collections.abc import Iterator

from udit.errors import UserError
from udit.models.fixed import Keys, Row, both
from udit.models.pde.config import PDEConfig


def key_map(config: PDEConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    if config.ffn.gelu != "exact":
        raise UserError("the release has the exact GELU only; this network, with ffn.gelu tanh, is an ablation of ours")
    if not config.num_classes:
        raise UserError("the release has a label for each kind of equation; this network, of none, is one of ours")
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: PDEConfig) -> Iterator[Row]:
    widths, depths, levels, top = config.widths, config.depths, config.levels, config.widths[1]
    yield from both("x_embedder.proj", "stem", (config.width, config.input_channels, config.patch, config.patch))
    for i, w in enumerate(widths):
        for layer, inner in ((0, 256), (2, w)):
            yield from both(f"t_embedder_{i}.mlp.{layer}", f"conditioners.{i}.time.{layer}", (w, inner))
        table = f"conditioners.{i}.label.weight"
        yield f"y_embedder_{i}.embedding_table.weight", table, (config.num_classes + 1, w)
    for i, w in enumerate(widths):
        stage = f"encoder_level_{i}" if i < levels - 1 else "latent"
        yield from _stage(config, stage, f"encoder.{i}", w, depths[i])
        if i < levels - 1:
            yield f"down{i}_{i + 1}.body.0.weight", f"merge.{i}.conv.weight", (w // 2, w, 3, 3)
    for i in range(levels - 1):
        w, own = widths[i], widths[i] if i else top
        yield f"up{i + 1}_{i}.body.0.weight", f"split.{i}.conv.weight", (4 * w, 2 * w, 3, 3)
        yield from both(f"reduce_chan_level{i}", f"reduce.{i}", (own, 2 * w, 1, 1))
        yield from _stage(config, f"decoder_level_{i}", f"decoder.{i}", own, depths[-1 - i])
    yield from both("output", "last", (top, top, 3, 3))
    yield from both("final_layer.out_proj", "out", (config.patch**2 * config.out_channels, top, 3, 3))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * top, top))


def _stage(config: PDEConfig, key: str, name: str, width: int, depth: int) -> Iterator[Row]:
    hidden, heads = round(config.ffn.ratio * width), config.heads
    for i in range(depth):
        theirs, ours = f"{key}.blocks.{i}", f"{name}.blocks.{i}"
        bias, positions = f"{theirs}.attn.pos_emb_funct.cpb_mlp", f"{ours}.attention.positions"
        yield from both(f"{theirs}.norm1", f"{ours}.norm1", (width,))
        yield f"{theirs}.attn.logit_scale", f"{ours}.attention.logit_scale", (heads, 1, 1)
        yield f"{theirs}.attn.qkv.weight", f"{ours}.attention.qkv.weight", (3 * width, width)
        yield from both(f"{bias}.0", f"{positions}.expand", (512, 2))
        yield f"{bias}.2.weight", f"{positions}.contract.weight", (heads, 512)
        yield from both(f"{theirs}.norm2", f"{ours}.norm2", (width,))
        yield from both(f"{theirs}.mlp.fc1", f"{ours}.ffn.expand", (hidden, width))
        yield from both(f"{theirs}.mlp.fc2", f"{ours}.ffn.contract", (width, hidden))
        yield from both(f"{theirs}.adain_2.linear", f"{ours}.modulation", (6 * width, width))
