"""Key names of the U-DiT release, and the damage that its ``eval()`` does to a checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from udit.errors import UserError
from udit.models.fixed import Keys, Row, both
from udit.models.udit.config import UDiTConfig
from udit.nn.specs import Downsampled, Mlp


def key_map(config: UDiTConfig) -> Keys:
    """{published key: (our key, published shape)} in the release's order."""
    attention = config.attention
    if config.context:
        raise UserError("the release is conditioned on classes, and this model on vectors; it has no published form")
    if not isinstance(attention, Downsampled):
        raise UserError(f"the release has downsampled attention only, not {attention.kind!r}")
    if not isinstance(config.ffn, Mlp) and not config.ffn.reparam and attention.kernel and not attention.shortcut:
        raise UserError("a fused U-DiT has no published form; import into, or export from, the unfused network")
    if attention.factor != 2 or attention.dense:
        found = f"factor {attention.factor}" if attention.factor != 2 else "a dense filter"
        raise UserError(f"the release has attention factor 2 and depthwise filters only, not {found}")
    return {key: (name, shape) for key, name, shape in _rows(config)}


def _rows(config: UDiTConfig) -> Iterator[Row]:
    levels, depths, c = config.levels, config.depths, config.width
    widths = [c * 2**level for level in range(levels)]
    top = 2 * c if levels > 1 else c
    yield from both("x_embedder.proj", "stem", (c, config.input_channels, 3, 3))
    for i, w in enumerate(widths):
        for layer, inner in ((0, 256), (2, w)):
            yield from both(f"t_embedder_{i + 1}.mlp.{layer}", f"conditioners.{i}.time.{layer}", (w, inner))
        if config.num_classes:
            name = f"conditioners.{i}.label.weight"
            yield f"y_embedder_{i + 1}.embedding_table.weight", name, (config.num_classes + 1, w)
    for i, w in enumerate(widths):
        stage = f"encoder_level_{i + 1}" if i < levels - 1 else "latent"
        yield from _stage(config, stage, f"encoder.{i}", w, depths[i])
        if i < levels - 1:
            yield f"down{i + 1}_{i + 2}.body.0.weight", f"merge.{i}.conv.weight", (w // 2, w, 3, 3)
    for i in reversed(range(levels - 1)):
        w = widths[i]
        yield f"up{i + 2}_{i + 1}.body.0.weight", f"split.{i}.conv.weight", (4 * w, 2 * w, 3, 3)
        own = w if i else top
        yield from both(f"reduce_chan_level{i + 1}", f"reduce.{i}", (own, 2 * w, 1, 1))
        yield from _stage(config, f"decoder_level_{i + 1}", f"decoder.{i}", own, depths[-1 - i])
    yield from both("output", "mix", (top, top, 3, 3))
    yield from both("final_layer.out_proj", "out", (config.out_channels, top, 3, 3))
    yield from both("final_layer.adaLN_modulation.1", "out_modulation", (2 * top, top))


def _stage(config: UDiTConfig, key: str, name: str, width: int, depth: int) -> Iterator[Row]:
    spec = cast(Downsampled, config.attention)
    for pair in range(2 * depth):
        block, k = divmod(pair, 2)
        theirs, ours = f"{key}.{block}", f"{name}.blocks.{pair}"
        attention, mlp = f"{theirs}.attn{k + 1}", f"{theirs}.mlp{k + 1}"
        if spec.cosine:
            yield f"{attention}.logit_scale", f"{ours}.attention.logit_scale", (config.heads, 1, 1)
        yield from both(f"{attention}.to_qkv", f"{ours}.attention.qkv", (3 * width, width))
        yield from both(f"{attention}.to_out", f"{ours}.attention.out", (width, width, 1, 1))
        if side := spec.kernel:
            yield from both(f"{attention}.downsampler.layer", f"{ours}.attention.filter", (width, 1, side, side))
        yield from _ffn(config, mlp, f"{ours}.ffn", width)
        yield from both(f"{theirs}.adaLN_modulation{k + 1}.1", f"{ours}.modulation", (6 * width, width))


def _ffn(config: UDiTConfig, key: str, name: str, width: int) -> Iterator[Row]:
    hidden = round(config.ffn.ratio * width)
    if isinstance(config.ffn, Mlp):
        yield from both(f"{key}.fc1", f"{name}.expand", (hidden, width, 1, 1))
        yield from both(f"{key}.fc2", f"{name}.contract", (width, hidden, 1, 1))
        return
    middle = max(1, hidden // 2)
    numbered = config.ffn.reparam
    inner, outer = [(middle, width), (hidden, middle)], [(middle, hidden), (width, middle)]
    for i, shape in enumerate(inner if numbered else [(hidden, width)]):
        tail = f".{i}" if numbered else ""
        yield from both(f"{key}.project_in{tail}", f"{name}.expand{tail}", (*shape, 1, 1))
    for i, side in enumerate(config.ffn.branches):
        theirs = f"{key}.dwconv.{i}" if numbered else f"{key}.dwconv"
        yield from both(theirs, f"{name}.depthwise.{i}", (hidden, 1, side, side))
    for i, shape in enumerate(outer if numbered else [(width, hidden)]):
        tail = f".{i}" if numbered else ""
        yield from both(f"{key}.project_out{tail}", f"{name}.contract{tail}", (*shape, 1, 1))


def check_eval(state: dict[str, Tensor], repair: bool) -> None:
    """Looks for the damage of the release's ``eval()``, which adds the folded branches to ``dwconv.0`` in place.

    The branches see the same input, so under Adam without weight decay they receive the same updates where their
    kernels overlap: K5 - K3 stays what it was at initialisation, within the two Xavier bounds. A damaged K5 is
    K5 + n (K3 + K1 + identity), which leaves those bounds; taking n of them away brings it back. Where that is so for
    every kernel of the file, the damage is certain and can be undone. An average centre above the clean one without
    such a proof (an early EMA, which starts from a damaged copy and decays as 0.9999 ** step) is warned about.

    Args:
        state: the release's state dict; repaired in place (new tensors) if asked.
        repair: undo recognised damage instead of refusing it.

    Raises:
        UserError: the damage is certain and ``repair`` is off.
    """
    prefixes = [key.removesuffix(".0.weight") for key in state if key.endswith("dwconv.0.weight")]
    if not prefixes or any(f"{p}.{i}.weight" not in state for p in prefixes for i in (1, 2)):
        return
    kernels = [tuple(state[f"{p}.{i}.weight"].double() for i in range(3)) for p in prefixes]
    if all(_clean(k5, k3) for k5, k3, _ in kernels):
        return
    excess = [(F.pad(k3, [1] * 4) + F.pad(k1 + 1, [2] * 4)) for _, k3, k1 in kernels]
    for times in (1, 2, 3):
        if all(_clean(k5 - times * e, k3) for (k5, k3, _), e in zip(kernels, excess, strict=True)):
            if not repair:
                raise UserError(
                    f"this checkpoint was saved after {times} eval() of the U-DiT release, which adds the folded "
                    "branches to dwconv.0.weight; import it with repair=True (`udit convert --repair`) to take them "
                    "out again"
                )
            for p, (k5, _, _), e in zip(prefixes, kernels, excess, strict=True):
                state[f"{p}.0.weight"] = (k5 - times * e).to(state[f"{p}.0.weight"].dtype)
            return
    centre = torch.cat([(k5[:, 0, 2, 2] - k3[:, 0, 1, 1]) for k5, k3, _ in kernels]).mean().item()
    if abs(centre) > 0.02:
        warnings.warn(
            f"the centres of dwconv.0 lie {centre:.2f} above those of dwconv.1 on average, where training leaves 0: "
            "these weights may have been saved after the U-DiT release's eval(), or be an early EMA of it; compare "
            "samples before use",
            stacklevel=4,
        )


def _clean(k5: Tensor, k3: Tensor) -> bool:
    """Whether K5 - K3 lies within the Xavier bounds of their initialisation on the common support."""
    hidden = k5.shape[0]
    bound = sum(math.sqrt(6 / (side**2 * (1 + hidden))) for side in (5, 3))
    return bool((k5[:, :, 1:4, 1:4] - k3).abs().amax() <= bound + 1e-3)
